"""A run's weights alone, in bfloat16, a sixth of its checkpoint: what results/demo/*.pt are.

    python -m runs.export_weights out/kron-4800-s11 results/demo/kron.pt

sample.py and the probes take the file as a run; train.py cannot go on from it.
"""
from lib.errors import Parser, run
from lib.run_folder import load_model, save_checkpoint


def export(folder, path):
    """Write the weights of the run in a folder to a file. InputError as `load_model`."""
    model, _, checkpoint = load_model(folder)
    kept = {key: checkpoint[key] for key in ("step", "best", "tokenizer", "config")}
    kept["model"] = {name: value.bfloat16() if value.is_floating_point() else value
                     for name, value in model.state_dict().items()}
    save_checkpoint(path, kept)


def main():
    parser = Parser(description=__doc__)
    parser.add_argument("folder", help="out/RUN")
    parser.add_argument("path", help="FILE.pt")
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
