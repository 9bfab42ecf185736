"""Data flows one way: a folder imports only from those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"fedmutual.config", "fedmutual.seeds"},
    {"fedmutual.data", "fedmutual.diffusion"},
    {"fedmutual.networks"},
    {"fedmutual.learning"},
    {"fedmutual.baselines"},
    {"fedmutual.evaluation", "fedmutual.checkpoint", "fedmutual.records"},
    {"client", "server"},
    {"simulations"},
]
"""From top to bottom; `fedmutual.x` stands for the module or the folder of that name."""

FILES = sorted(path for top in ("fedmutual", "client", "server", "simulations") for path in (ROOT / top).rglob("*.py"))


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    unit = ".".join(parts[:2]) if parts[0] == "fedmutual" else parts[0]
    return next((level for level, units in enumerate(LAYERS) if unit in units), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_come_from_above(path):
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        other = layer_of(module)
        assert other is None or own is None or other <= own, f"{path} imports {module} from below"


def test_every_file_has_a_layer():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
    assert [m for m in modules if layer_of(m) is None] == ["fedmutual.__init__"]


def test_client_and_server_do_not_know_each_other():
    for path in FILES:
        top = path.relative_to(ROOT).parts[0]
        other = {"client": "server", "server": "client"}.get(top)
        assert not other or not any(module.split(".")[0] == other for module in imports(path)), path


def test_the_method_knows_flower_only_in_records():
    method = [path for path in FILES if path.is_relative_to(ROOT / "fedmutual")]
    knowing = {path.name for path in method if any(module.split(".")[0] == "flwr" for module in imports(path))}
    assert knowing == {"records.py"}
