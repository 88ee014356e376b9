"""Names of a foreign state dict to ours, by a table of prefixes that must cover every key."""

import re

from torch import Tensor

from hybrid_tokenizer.checkpoints.files import MAX_LAYERS
from hybrid_tokenizer.errors import HybridTokenizerError, shorten

Table = dict[str, str | None]


def rule_of(key: str, table: Table) -> str | None:
    """The longest rule that fits `key`: a rule that ends in a dot fits every key below it, any other only itself."""
    fits = (rule for rule in table if key == rule or (rule.endswith(".") and key.startswith(rule)))
    return max(fits, key=len, default=None)


def rename_keys(state_dict: dict[str, Tensor], table: Table, source: str) -> dict[str, Tensor]:
    """Rename every key by the longest rule that fits it. A target of None drops the entry; a key without a rule raises.

    `source` names the checkpoint in the error.
    """
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        rule = rule_of(key, table)
        if rule is None:
            unknown.append(key)
        elif (target := table[rule]) is not None:
            renamed[target + key.removeprefix(rule)] = value
    if unknown:
        raise HybridTokenizerError(
            f"{source}: no rule for {len(unknown)} keys: {shorten(sorted(unknown))}; is this the kind of checkpoint you named?"
        )
    return renamed


def dropped_keys(state_dict: dict[str, Tensor], table: Table) -> list[str]:
    """The keys that `table` drops, sorted."""
    return sorted(key for key in state_dict if (rule := rule_of(key, table)) is not None and table[rule] is None)


def count_layers(state_dict: dict[str, Tensor], prefix: str) -> int:
    """Number of layers below `prefix`: 39 for `blocks.` with `blocks.0.` to `blocks.38.`, 0 where there is none."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]{1,9})\.")
    found = (pattern.match(key) for key in state_dict)
    count = max((int(match[1]) + 1 for match in found if match), default=0)
    if count > MAX_LAYERS:
        raise HybridTokenizerError(
            f"the checkpoint has a weight of {prefix}{count - 1}, expected at most {MAX_LAYERS} layers; download it again"
        )
    return count
