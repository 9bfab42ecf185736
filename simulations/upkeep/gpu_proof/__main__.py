"""The command of the proof: `python -m simulations.upkeep.gpu_proof OUT`, which `make gpu-proof` calls."""

import argparse
import sys
import time
from pathlib import Path

from simulations.upkeep.gpu_proof import needs

PARTS = ("device paths", "local steps", "options", "clients", "CIFAR10-LT")

TEST_IMAGES = 200
"""Of each class in a file that is to be carried: with its long tail CIFAR-10 then takes about 35 MB."""


def main() -> None:
    """Measure what is left to measure; exit code 0 all is done, 1 a piece failed or is left, 2 wrong usage."""
    arguments = _parser().parse_args()
    if arguments.wheels:
        return print(needs.how_to_carry())
    if lacking := needs.missing():
        _stop(f"{', '.join(lacking)} is missing: --wheels, where the project is installed, says how to carry it", 2)
    from fedmutual.errors import UserError

    try:
        if arguments.cut:
            return _cut(arguments.cut, arguments.out)
        done = prove(arguments.out, arguments.minutes, arguments.part or PARTS, arguments.data, arguments.extractor)
    except UserError as error:
        _stop(str(error), 2)
    sys.exit(0 if done else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulations.upkeep.gpu_proof", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of all that is found; an earlier one is gone on with")
    parser.add_argument("--minutes", type=float, default=25.0, help="no piece is begun after so many")
    parser.add_argument("--part", action="append", choices=PARTS, help="this part alone; may be repeated")
    parser.add_argument("--data", type=Path, help="a .npz that --cut wrote; without it images are made up")
    parser.add_argument("--extractor", type=Path, help="of `fedmutual extractor`; without it one is trained here")
    parser.add_argument("--cut", type=Path, metavar="NPZ", help="write the long tail of this CIFAR-10 to OUT, no more")
    parser.add_argument("--wheels", action="store_true", help="say how to carry what is needed, no more")
    return parser


def _cut(source: Path, target: Path) -> None:
    from simulations.upkeep.gpu_proof.images import cut
    from simulations.upkeep.gpu_proof.sizes import CARD

    counts = cut(CARD.preset("cifar10", data_path=str(source)), target, TEST_IMAGES)
    print(
        f"{target}: {sum(counts)} training images ({', '.join(map(str, counts))}), {target.stat().st_size / 1e6:.1f} MB"
    )


def prove(
    out: Path,
    minutes: float,
    parts: list[str] | tuple[str, ...],
    data: Path | None = None,
    extractor: Path | None = None,
) -> bool:
    """Measure the pieces of `parts` that `out` does not hold yet, until the time is up; whether all are done.

    Raises:
        UserError: `out` holds what was found on another machine, or files that are missing or cannot be used.
    """
    from simulations.upkeep.gpu_proof.findings import Findings, machine

    out, deadline = out.absolute(), time.monotonic() + 60 * minutes
    here = machine()
    findings = Findings(out, here)
    print(f"{here['card']}, torch {here['torch']}: into {out}", flush=True)
    left = []
    for piece in [piece for piece in _pieces(out, data, extractor) if piece.part in parts]:
        if findings.has(piece):
            continue
        if time.monotonic() > deadline:
            left.append(piece)
            continue
        began = time.monotonic()
        try:
            outcome = {"rows": piece.measure()}
        except Exception as error:  # an option that this card or this PyTorch does not have leaves the others be
            outcome = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        findings.add(piece, time.monotonic() - began, **outcome)
        words = outcome.get("failed", "done")
        print(f"{piece.part}, {piece.name}: {words}, {time.monotonic() - began:.1f} s", flush=True)
        _free()
    if left:
        print(
            f"{len(left)} pieces are left, and the same command goes on with them: {left[0].part}, {left[0].name} first"
        )
    print(f"tables: {out / 'tables.md'}")
    return not left and not findings.failed


def _pieces(out: Path, data: Path | None, extractor: Path | None) -> list:
    import torch

    from fedmutual.errors import UserError
    from simulations.upkeep.gpu_proof import clients, device_paths, long_tail, options
    from simulations.upkeep.gpu_proof.images import make_up
    from simulations.upkeep.gpu_proof.sizes import CARD, TOY

    size = CARD if torch.cuda.is_available() else TOY
    what = data.name if data else "made-up images"
    for path in (data, extractor):
        if path and not path.exists():
            raise UserError(f"{path} is missing")
    if not data:
        data = out / "made-up.npz"
        if not data.exists():
            make_up(size.preset("cifar10", imbalance="none"), data, size.made_up)
    data, extractor = data.absolute(), (extractor or out / "extractor.safetensors").absolute()
    return [
        *device_paths.pieces(),
        *options.pieces(size),
        *clients.pieces(size, data, out),
        *long_tail.pieces(size, data, what, extractor, out),
    ]


def _free() -> None:
    """Give back what a piece held of the card, so that the next one has all of it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stop(message: str, code: int) -> None:
    print("error:", message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
