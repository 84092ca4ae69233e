"""Makes the demo model: a tiny Whisper that knows the phrases of backend/app/asr/demo_model/phrases.json.

Run it from the root of the repository, in an environment of its own:

    python3.11 -m venv .venv-demo-model
    .venv-demo-model/bin/pip install torch==2.13.0 transformers==5.23.0 -r requirements.txt
    PYTHONPATH=backend:. .venv-demo-model/bin/python -m tools.demo_model build

`build` runs the stages in turn, all on one core; each is a command of its own too:

    tokenizer   tokenizer.json                                       a second
    data        pool-1.pkl, pool-2.pkl, pool-3.pkl (2 GB)            3 to 4 minutes
    train       stage-1.pt, stage-2.pt, stage-3.pt                   24 minutes of CPU time
    convert     model/, the folder that faster_whisper loads         seconds
    evaluate    prints the accuracy of a model folder                a minute or two
    samples     calls/, a call of each phrase, and samples.json      half a minute

Everything is written under `--work` (build/demo-model). Nothing of the package is replaced: compare, then
copy. `evaluate` and `samples` use the shipped model unless `--model` says otherwise; they need no torch.
"""

import argparse
import os
from pathlib import Path

# CTranslate2 and OpenBLAS read these when they are loaded, and the CPU times below are those of one core.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from tools.demo_model.corpus import Sample, SampleMaker, read_pool, write_pool
from tools.demo_model.espeak import Espeak
from tools.demo_model.phrases import SHIPPED, build_tokenizer, load_phrases

POOLS = {1: 18000, 2: 18000, 3: 16000}
"""Seed and size of each pool of samples."""


def tokenizer(options: argparse.Namespace) -> None:
    phrases = load_phrases()
    made = build_tokenizer(phrases)
    broken = [phrase.text for phrase in phrases if made.decode(made.encode(phrase.text).ids) != phrase.text]
    if broken:
        raise SystemExit(f"the tokenizer does not give back {broken}")
    made.save(str(options.work / "tokenizer.json"), pretty=False)
    longest = max(len(made.encode(f" {phrase.text}").ids) for phrase in phrases)
    print(f"{made.get_vocab_size()} tokens; the longest phrase has {longest}")


def data(options: argparse.Namespace) -> None:
    espeak, phrases = Espeak(), load_phrases()
    for seed, size in POOLS.items():
        if seed not in (options.pool or POOLS):
            continue
        maker = SampleMaker(espeak, phrases, seed)
        count = options.count or size
        write_pool(options.work / f"pool-{seed}.pkl", [maker.draw() for _ in range(count)])
        print(f"pool {seed}: {count} samples", flush=True)


def train(options: argparse.Namespace) -> None:
    from tokenizers import Tokenizer

    from tools.demo_model.lessons import Teacher
    from tools.demo_model.training import STAGES, Trainer

    made = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    for number, stage in enumerate(STAGES, start=1):
        if number not in (options.stage or (1, 2, 3)):
            continue
        samples: list[Sample] = []
        for pool in stage.pools:
            samples += read_pool(options.work / f"pool-{pool}.pkl")
        trainer = Trainer(stage, Teacher(made, samples))
        if number > 1:
            trainer.load(options.work / f"stage-{number - 1}.pt")
        print(f"stage {number}: {len(samples)} samples, {stage.seconds:.0f} s of CPU time", flush=True)
        trainer.run(stage.seconds, options.steps)
        trainer.save(options.work / f"stage-{number}.pt")


def convert(options: argparse.Namespace) -> None:
    from tokenizers import Tokenizer

    from tools.demo_model.conversion import convert as write_model

    made = Tokenizer.from_file(str(options.work / "tokenizer.json"))
    folder = options.work / "model"
    write_model(options.work / "stage-3.pt", made, folder)
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>9,} {file.name}")


def evaluate(options: argparse.Namespace) -> None:
    from tools.demo_model.evaluation import Examiner

    examiner = Examiner(options.model, Espeak(), load_phrases())
    examiner.run(options.per_phrase, thorough=options.thorough)


def samples(options: argparse.Namespace) -> None:
    from tools.demo_model.evaluation import CallWriter

    CallWriter(options.model, Espeak(), options.work / "calls").run(load_phrases())


def build(options: argparse.Namespace) -> None:
    for stage in (tokenizer, data, train, convert):
        stage(options)
    options.model = options.work / "model"
    evaluate(options)
    samples(options)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("build/demo-model"), help="where everything is written")
    parser.set_defaults(pool=None, count=None, stage=None, steps=None, per_phrase=4, thorough=False, model=SHIPPED)
    commands = parser.add_subparsers(required=True, metavar="command")
    for action in (build, tokenizer, data, train, convert, evaluate, samples):
        command = commands.add_parser(action.__name__)
        command.set_defaults(action=action)
        if action in (build, data):
            command.add_argument("--count", type=int, help="samples a pool, for a short trial")
        if action is data:
            command.add_argument("--pool", type=int, action="append", choices=tuple(POOLS), help="only this pool")
        if action in (build, train):
            command.add_argument("--steps", type=int, help="at most so many steps a stage, for a short trial")
        if action is train:
            command.add_argument("--stage", type=int, action="append", choices=(1, 2, 3), help="only this stage")
        if action in (evaluate, samples):
            command.add_argument("--model", type=Path, default=SHIPPED, help="the model folder")
        if action in (build, evaluate):
            command.add_argument("--per-phrase", type=int, default=4, help="calls of each phrase")
            command.add_argument("--thorough", action="store_true", help="also other settings of faster_whisper")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.action(options)


if __name__ == "__main__":
    main()
