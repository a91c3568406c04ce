# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One page of a chain, of one run, or of several side by side: `g2sd report WORKDIR…`.

Every number comes from the runs' files (`DONE`, `config.json`, `metrics.jsonl`,
checkpoints, the files of `g2sd analyse` and `g2sd evaluate`) or is measured here, and
the page says which; every sentence on the outcome is chosen by numbers.
"""

import os
from collections.abc import Sequence

from g2sd_jax import command, finished
from g2sd_jax.pages import chain_report, sections


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("report")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument(
        "--out",
        type=command.output_file,
        default="",
        help="default: report.html in the (first) folder",
    )
    args = parser.parse_args(argv)
    first = args.workdirs[0]
    out = args.out or os.path.join(first, "report.html")
    if os.path.exists(os.path.join(first, finished.CHAIN)) and len(args.workdirs) == 1:
        print(chain_report.write(finished.chain_config(first), first, out))
    else:
        named, _ = finished.expand(args.workdirs)
        chain_report.write_text(out, sections.of_runs(named))
    print(f"written to {out}")
    return 0
