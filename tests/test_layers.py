"""Data flows one way: a room imports only from those above it, and only a few may know Flower, clients and servers."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {
        *("fedmutual.errors", "fedmutual.seeds", "fedmutual.text"),
        *("fedmutual.course", "fedmutual.checkpoint", "fedmutual.records"),
    },
    {"fedmutual.settings", "fedmutual.config", "fedmutual.saved_networks"},
    {"fedmutual.device", "fedmutual.data", "fedmutual.diffusion"},
    {"fedmutual.networks", "fedmutual.theory"},
    {"fedmutual.privacy"},
    {"fedmutual.learning"},
    {"fedmutual.baselines"},
    {"fedmutual.evaluation"},
    {"fedmutual.methods"},
    {"fedmutual.run_folder"},
    {"client", "server"},
    {"simulations.terminal", "simulations.drawing"},
    {"simulations.runs", "simulations.engine", "simulations.game", "simulations.deployment"},
    {"simulations.report", "simulations.experiments", "simulations.upkeep"},
    {"simulations.cli"},
    {"fedmutual.__main__"},
]
"""From top to bottom. A name stands for the module or the folder of that name. Rooms on one floor do not know each
other; the arrows between floors that are more than this are in `ARROWS`."""

ARROWS = {
    "simulations.runs": {"fedmutual", "simulations.terminal"},
    "simulations.report": {"fedmutual", "simulations.drawing", "simulations.runs"},
    "simulations.game": {"fedmutual", "simulations.drawing", "simulations.terminal"},
    "simulations.engine": {"fedmutual", "client", "server"},
    "simulations.deployment": {"fedmutual", "client", "server", "simulations.terminal"},
    "simulations.experiments": {"fedmutual", "client", "server", "simulations.engine", "simulations.runs"},
    "simulations.upkeep": {
        *("fedmutual", "client", "server"),
        *("simulations.engine", "simulations.deployment", "simulations.runs"),
    },
}
"""The rooms that a room of `simulations` may import, beside itself; `cli` may import all of them."""

RUN_FEDERATIONS = {f"simulations.{room}" for room in ("engine", "experiments", "deployment", "upkeep")}
"""The rooms that may import clients and servers."""

FILES = sorted(path for top in ("fedmutual", "client", "server", "simulations") for path in (ROOT / top).rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("fedmutual", "simulations") else parts[0]


def floor_of(module: str) -> int | None:
    return next((floor for floor, rooms in enumerate(FLOORS) if room_of(module) in rooms), None)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_come_from_above(path):
    room, floor = room_of(name_of(path)), floor_of(name_of(path))
    for module in imports(path):
        other = floor_of(module)
        if other is None or floor is None or room_of(module) == room:
            continue
        assert other < floor, f"{path} imports {module} from its own floor or below"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_of_simulations_imports_only_along_its_arrows(path):
    allowed = ARROWS.get(room_of(name_of(path)))
    if allowed is None:
        return
    for module in imports(path):
        room = room_of(module)
        if floor_of(module) is not None and room != room_of(name_of(path)):
            assert room in allowed or room.split(".")[0] in allowed & {"fedmutual"}, f"{path} imports {module}"


def test_only_rooms_that_run_federations_know_clients_and_servers():
    for path in FILES:
        if room_of(name_of(path)) not in {"client", "server", *RUN_FEDERATIONS}:
            assert {room_of(module) for module in imports(path)}.isdisjoint({"client", "server"}), path


def test_no_module_is_imported_by_one_that_it_imports():
    """Inside a room too, and whether at the top of a file or in a function: else the sorter raises CycleError."""
    modules = {name_of(path): path for path in FILES}

    def imported(path):
        ours = {module if module in modules else module.rpartition(".")[0] for module in imports(path)}
        return (ours & modules.keys()) - {name_of(path)}

    TopologicalSorter({name: imported(path) for name, path in modules.items()}).prepare()


def test_every_file_has_a_floor():
    modules = [name_of(path) for path in FILES]
    assert [m for m in modules if floor_of(m) is None] == ["fedmutual", "simulations"]


def test_simulations_has_rooms_and_at_most_one_loose_file():
    loose = [path.name for path in (ROOT / "simulations").glob("*.py") if path.name != "__init__.py"]
    assert loose == ["terminal.py"]


def test_client_and_server_do_not_know_each_other():
    for path in FILES:
        top = path.relative_to(ROOT).parts[0]
        other = {"client": "server", "server": "client"}.get(top)
        assert not other or not any(module.split(".")[0] == other for module in imports(path)), path


def test_the_method_knows_flower_only_in_records():
    method = [path for path in FILES if path.is_relative_to(ROOT / "fedmutual")]
    knowing = {path.name for path in method if any(module.split(".")[0] == "flwr" for module in imports(path))}
    assert knowing == {"records.py"}


def imported_at_its_top(path: Path) -> set[str]:
    """Every module whose import runs when the file is imported: not in functions, nor for the type checker alone."""
    found, todo = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not isinstance(node, ast.FunctionDef) and "TYPE_CHECKING" not in ast.dump(getattr(node, "test", node)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def test_what_a_gpu_is_proved_by_needs_neither_flower_nor_ray():
    """Nor do the files that its files import, in turn: only functions that are called where there is Flower may."""
    modules = {name_of(path): path for path in FILES}
    needed, todo = set(), [name for name in modules if name.startswith("simulations.upkeep.gpu_proof")]
    while todo:
        module = todo.pop()
        if module in modules and module not in needed:
            needed.add(module)
            todo += imported_at_its_top(modules[module])
    foreign = {module.split(".")[0] for name in needed for module in imported_at_its_top(modules[name])}
    assert {"fedmutual.learning.igd", "fedmutual.run_folder", "client.store", "simulations.runs.measuring"} <= needed
    assert foreign.isdisjoint({"flwr", "ray", "torchvision", "sklearn", "typer", "rich", "matplotlib", "jinja2"})


def test_tests_mirror_the_tree():
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.parent.relative_to(ROOT / "tests")
        assert place == Path() or (ROOT / place).is_dir(), f"{path} lies in no room of the code"
