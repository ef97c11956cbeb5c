"""The targets of fuzz_targets.py, led by libFuzzer through the package atheris, which is nowhere required.

    python -m tests.torture.fuzz_led SECONDS SEED TARGET DIRECTORY

Ends with 0 where nothing was found; inputs that failed lie in DIRECTORY, which also keeps what reached new code.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # no dependency: whoever runs this has it

# Before anything else imports them: they are counted line by line.
with atheris.instrument_imports(include=["mailfs"]):
    from tests.torture.fuzz import LIMIT_S, MAX_BYTES
    from tests.torture.fuzz_targets import targets


def main(seconds: int, seed: int, name: str, directory: Path) -> None:
    """libFuzzer's loop, which ends the process."""
    (target,) = (target for target in targets() if target.name == name)
    corpus = directory / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    arguments = [f"-seed={seed}", f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}"]
    arguments += [f"-timeout={int(LIMIT_S) + 1}", f"-artifact_prefix={corpus}-failed-"]
    atheris.Setup([name, *arguments, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
