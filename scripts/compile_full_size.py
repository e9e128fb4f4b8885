"""Compile the graphs of the published sizes for the devices' stand-ins, and print what it takes.

The encoders are whole, with seeded random weights; the decoder's weights are inputs, so that its
graph needs their shapes alone. Nothing is executed: it shows that the graphs are well formed, typed
and have kernels for a GPU of the target's generation.

Usage:
    python scripts/compile_full_size.py --target orin --recipe orin
    python scripts/compile_full_size.py --target thor --recipe nvfp4 --layers 'MEM*EM'
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_full_size import SparseCheckpoint
from published_config import CONFIG
from synthesize_checkpoint import with_layers

from build_engine import plans
from build_engine.decoder_layout import recipe_layout
from build_engine.encoder_graphs import write_encoders
from build_engine.recipe import load_recipe
from edge.errors import EdgeError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", choices=plans.TARGETS, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--layers", help="of the decoder, e.g. MEM*EM (default: all 52)")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--context", type=int, default=8192)
    arguments = parser.parse_args()
    target = plans.TARGETS[arguments.target]
    config = with_layers(CONFIG, arguments.layers) if arguments.layers else CONFIG
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = SparseCheckpoint(Path(folder) / "checkpoint", config)
        encoders = None
        if not arguments.decoder_only:
            encoders = Path(folder) / "encoders"
            encoders.mkdir()
            write_encoders(checkpoint, encoders)
        layout = recipe_layout(checkpoint.spec.decoder, load_recipe(arguments.recipe))
        work = Path(folder) / "work"
        work.mkdir()
        options = plans.Options(arguments.context)
        orders = plans.orders(checkpoint.spec, layout, encoders, work, target, options)
        built = []
        try:
            for figures in plans.check(orders, target, lambda *_: None):
                print(json.dumps(plans.as_dict([figures])), flush=True)
                built.append(figures)
        except EdgeError as error:
            print(f"compile_full_size: {error}", file=sys.stderr)
            return error.exit_code
    print(plans.table(built))
    return 0


if __name__ == "__main__":
    sys.exit(main())
