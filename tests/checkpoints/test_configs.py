"""Dataclasses read from JSON: every name and every type is checked, in all three branches."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest

from hybrid_tokenizer.checkpoints.configs import from_json
from hybrid_tokenizer.diffusion import DiffusionConfig
from hybrid_tokenizer.errors import HybridTokenizerError
from hybrid_tokenizer.guide import GuideConfig
from hybrid_tokenizer.semantic import SemanticConfig


@dataclass
class Inner:
    width: int = 3

    def __post_init__(self):
        if 12 % self.width:
            raise HybridTokenizerError(f"width={self.width} must divide 12")


@dataclass
class Outer:
    name: str
    rate: float = 0.5
    sizes: list[int] = field(default_factory=list)
    scales: list[float] | None = None
    extra: dict = field(default_factory=dict)
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


def test_values_of_every_type():
    values = {
        "name": "a",
        "rate": 1,
        "sizes": [1, 2],
        "scales": [1, 0.5],
        "extra": {"b": None},
        "flag": True,
        "inner": {"width": 4},
    }
    read = from_json(Outer, values, "x")
    assert read == Outer("a", 1.0, [1, 2], [1.0, 0.5], {"b": None}, True, Inner(4)) and isinstance(read.rate, float)
    assert from_json(Outer, {"name": "a", "scales": None, "inner": Inner(6)}, "x").inner == Inner(6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "x is [1], expected an object; write or download it again"),
        ({}, "x has no name: it is of another kind or another version of Outer; give the right folder"),
        ({"name": "a", "b": 1}, "x has unknown entries 'b': it is of another kind or another version of Outer; give the right folder"),
        ({"name": None}, "x: name is None, expected text; correct it or download it again"),
        ({"name": "a", "rate": "1"}, "x: rate is '1', expected a number; correct it or download it again"),
        ({"name": "a", "rate": True}, "x: rate is True, expected a number; correct it or download it again"),
        ({"name": "a", "sizes": 1}, "x: sizes is 1, expected a list; correct it or download it again"),
        ({"name": "a", "sizes": [1, 1.5]}, "x: sizes[1] is 1.5, expected a whole number; correct it or download it again"),
        ({"name": "a", "sizes": [True]}, "x: sizes[0] is True, expected a whole number; correct it or download it again"),
        ({"name": "a", "extra": []}, "x: extra is [], expected an object; correct it or download it again"),
        ({"name": "a", "flag": 1}, "x: flag is 1, expected true or false; correct it or download it again"),
        ({"name": "a", "inner": {"width": "b"}}, "x: inner: width is 'b', expected a whole number; correct it or download it again"),
        ({"name": "a", "inner": {"width": 5}}, "width=5 must divide 12"),
        (
            {"name": "a", "inner": {"width": 0}},
            "x: inner describes no model that can be built (ZeroDivisionError: integer modulo by zero); write or download it again",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(values, message):
    with pytest.raises(HybridTokenizerError) as caught:
        from_json(Outer, values, "x")
    assert str(caught.value).replace("division or modulo", "modulo") == message


def test_complete_asks_for_every_field():
    with pytest.raises(
        HybridTokenizerError, match=r"^x has no rate, sizes, scales, extra, flag, inner: it is of another kind"
    ):
        from_json(Outer, {"name": "a"}, "x", complete=True)


CONFIGS = {
    "guide": GuideConfig.tiny(nested=True),
    "semantic": SemanticConfig.tiny(),
    "diffusion": DiffusionConfig.tiny(),
}
ODD = (None, True, -1, 0, 1.5, 10**9, float("nan"), "abc", [], ["a"], [None], {}, {"a": 1})


@pytest.mark.parametrize("name", CONFIGS)
def test_no_value_of_another_type_gets_past_a_branch(name):
    """Each entry, also of nested objects, replaced by each odd value: read as it was meant, or one line of ours."""
    config = CONFIGS[name]
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_json(type(config), values, "x") == config
    read, refused = 0, 0
    for path in paths_of(values):
        for odd in ODD:
            changed = json.loads(json.dumps(values))
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            try:
                from_json(type(config), changed, "x")
                read += 1
            except HybridTokenizerError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 100 and read > 10


def paths_of(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*path, key))
