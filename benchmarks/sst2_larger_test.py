"""SST-2 divided anew, with a test part that can tell a student from its control.

The 1,821 test sentences prove no gain below about 1.1 points. Here a stratified part of the training
sentences joins them, before any network sees it; teacher, student and control learn from the rest.

    python benchmarks/sst2_larger_test.py --data DIR --out NEW
    potstill run sst2-teacher --data NEW --out runs/sst2-teacher
    potstill run sst2-bert --data NEW
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.data.split import cut
from potstill.data.texts import TextSet, load_texts

PARTS = ("train", "dev", "test")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sst2")
    parser.add_argument("--out", type=Path, required=True, help="new folder that will hold sst2")
    parser.add_argument("--train", type=int, default=4000, help="sentences that stay for training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = load_texts("jsonl", str(options.data / "sst2"), (None, None), {})
    train, moved = cut(found["train"], len(found["train"]) - options.train, options.seed, "--train")
    (options.out / "sst2").mkdir(parents=True)
    for name, parts in zip(PARTS, ((train,), (found["validation"],), (found["test"], moved)), strict=True):
        rows = [row for part in parts for row in rows_of(part)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (options.out / "sst2" / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows):,} sentences")


def rows_of(part: TextSet) -> list[dict[str, object]]:
    return [{"text": text, "label": int(label)} for text, label in zip(part.texts, part.labels, strict=True)]


if __name__ == "__main__":
    main()
