"""A tokenizer from own text: the same every time, every digit alone, every text back."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hone.data.tokenizer_training import train_tokenizer

TEXTS = [
    f"{a}+{b}={a + b}. The capital of Peru is Lima; naïve café 日本 🙂"
    for a in range(20)
    for b in range(9)
]


def test_texts_come_back_and_digits_stand_alone() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    for text in ("12345+678", "unseen wörds\n\t🙃", TEXTS[3]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("123") == ["1", "2", "3"]
    assert len(tokenizer) <= 400


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    code = (
        "import json, sys; from hone.data.tokenizer_training import train_tokenizer\n"
        "texts = json.load(open(sys.argv[1] + '/texts.json'))\n"
        "train_tokenizer(texts, 400).save_pretrained(sys.argv[1] + '/' + sys.argv[2])"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path, seed], env=environment, check=True)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
