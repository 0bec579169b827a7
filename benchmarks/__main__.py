"""``python -m benchmarks [part ...]``; all parts by default."""

from __future__ import annotations

import argparse

from . import cpu_forward, decode, latency, tiles, traffic, training

PARTS = {"latency": latency.main, "traffic": traffic.main, "cpu-forward": cpu_forward.main,
         "tiles": tiles.main, "training": training.main, "decode": decode.main}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    chosen = parser.parse_args().parts
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    for name in chosen or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
