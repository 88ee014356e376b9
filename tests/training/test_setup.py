import json

from training_runs import picture, write_pictures

from hybrid_tokenizer.data.config import DataConfig
from hybrid_tokenizer.data.items import item_captions, item_path
from hybrid_tokenizer.training.config import TrainingConfig
from hybrid_tokenizer.training.setup import build_data, split_items


def names(items):
    return sorted(item_path(item).name for item in items)


def test_roots_are_split_each_and_repeated(tmp_path):
    one, two, other = (write_pictures(tmp_path / name, count) for name, count in (("one", 6), ("two", 4), ("other", 3)))
    training, validation = split_items(DataConfig(root=[str(one), str(two)], repeats=[1, 3], val_at_least=2), False)
    assert len(validation) == 4 and len(training) == 4 + 3 * 2
    assert not {item_path(item) for item in training} & {item_path(item) for item in validation}
    training, validation = split_items(DataConfig(root=str(one), val_root=str(other)), False)
    assert len(training) == 6 and names(validation) == ["00.png", "01.png", "02.png"]


def test_rows_that_share_an_image_stay_together(tmp_path):
    rows = []
    for index in range(8):
        picture(index).save(tmp_path / f"{index}.png")
        rows += [{"file": f"{index}.png", "captions": [f"{word} {index}"]} for word in ("first", "second")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    training, validation = split_items(DataConfig(root=str(tmp_path), val_at_least=3), captions=True)
    assert len(training) == 10 and len(validation) == 6
    assert not set(names(training)) & set(names(validation))
    assert len({item_captions(item) for item in training + validation}) == 16


def test_validation_is_spread_over_the_set_and_whole(tmp_path, capsys):
    folder = write_pictures(tmp_path / "val", 9)
    (folder / "n1" / "04.png").write_bytes(b"no image")
    config = TrainingConfig(batch_size=2, max_val_images=5)
    data = DataConfig(root=str(folder), val_root=str(folder), image_size=16, val_image_size=24)
    stream, batches = build_data(data, config)
    assert [tuple(batch["images"].shape) for batch in batches] == [(2, 3, 24, 24), (2, 3, 24, 24)]
    assert stream[0]["images"].shape == (3, 16, 16)
    assert capsys.readouterr().out.startswith(f"skipped {folder / 'n1' / '04.png'}: ")
