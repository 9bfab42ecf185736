"""A client's ledger: it survives kills, adds up over runs, and notices what is gone."""

import json
import shutil

import pytest

from fedmutual.checkpoint import write_atomic
from fedmutual.data.fingerprint import Fingerprint
from fedmutual.errors import UserError
from fedmutual.networks.owned import class_folder
from fedmutual.privacy import ledger
from fedmutual.privacy.cost import ORDERS, Cost, gaussian_epsilon
from fedmutual.privacy.ledger import RECEIPT, Expenditure, Ledger, Overspent, total

A, B = "a" * 16, "b" * 16
DELTA = 1e-5


def bill(run=A, key="round 1", rho=0.5, **changes):
    told = {"mechanism": "gaussian", "parameters": {"draws": 1}, "relation": "replace-one", "cost": Cost(rho)}
    return Expenditure(run, key, **{**told, "data": Fingerprint(4, "0" * 32), **changes})


def pay(store, asked, epsilon=0.0):
    folder = class_folder(store, asked.run, 3)
    folder.mkdir(parents=True, exist_ok=True)
    entries = Ledger(store, 3).spend(asked, epsilon, DELTA)
    (folder / "round-000001.safetensors").touch()  # what training after it leaves
    return entries


def test_an_entry_is_on_the_disk_as_it_was_made(tmp_path):
    asked = bill(cost=Cost(0.5, tuple(0.1 * order for order in ORDERS)))
    pay(tmp_path, asked)
    assert Ledger(tmp_path, 3).entries() == [asked]
    assert Ledger(tmp_path, 2).entries() == []
    assert json.loads((tmp_path / "ledger-003.json").read_text())["entries"][0]["parameters"] == {"draws": 1}


def test_what_a_run_comes_for_again_is_paid_once(tmp_path):
    pay(tmp_path, bill())
    assert len(pay(tmp_path, bill(when="later"))) == 1
    assert len(pay(tmp_path, bill(key="round 2"))) == 2
    with pytest.raises(UserError, match=r"round 1 of this run was paid for at another cost"):
        pay(tmp_path, bill(rho=0.1))


def test_runs_on_one_store_share_what_may_be_spent(tmp_path):
    allowed = gaussian_epsilon(2.0, DELTA) + 1e-6  # two of rho 1
    pay(tmp_path, bill(A, rho=1.0), allowed)
    pay(tmp_path, bill(B, rho=1.0), allowed)
    for run in (B, "c" * 16):
        with pytest.raises(Overspent, match=r"epsilon = 9.99726 at delta = 1e-05 and has spent 10: gaussian .* 12.9"):
            pay(tmp_path, bill(run, "round 2", rho=1.0), allowed)
    assert total(Ledger(tmp_path, 3).entries()).rho == 2.0


@pytest.mark.parametrize("step", ["_write", "_write_receipt"])
def test_a_kill_at_any_step_pays_neither_twice_nor_never(tmp_path, monkeypatch, step):
    """Nothing is trained before `spend` returns; after a kill the same run comes again."""
    pay(tmp_path, bill(B))
    class_folder(tmp_path, A, 3).mkdir(parents=True)

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger, step, kill)
        with pytest.raises(KeyboardInterrupt):
            Ledger(tmp_path, 3).spend(bill(), 0.0, DELTA)
    assert [entry.run for entry in pay(tmp_path, bill())] == [B, A]
    assert [entry.run for entry in pay(tmp_path, bill(key="round 2"))] == [B, A, A]


def lost(store):
    (store / "ledger-003.json").unlink()


def cut(store):
    path = store / "ledger-003.json"
    write_atomic(path, path.read_bytes()[:-40])


def shortened(store):
    path = store / "ledger-003.json"
    content = json.loads(path.read_text())
    write_atomic(path, json.dumps({**content, "entries": content["entries"][:1]}).encode())


def lowered(store):
    path = store / "ledger-003.json"
    write_atomic(path, path.read_bytes().replace(b'"rho": 0.5', b'"rho": 0.1'))


def emptied(store):
    (store / "ledger-003.json").write_text("[]")


def older(store):
    shutil.copy(store / "before.json", store / "ledger-003.json")


def without_receipt(store):
    (class_folder(store, A, 3) / RECEIPT).unlink()


def with_broken_receipt(store):
    (class_folder(store, A, 3) / RECEIPT).write_text("{")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lost, "ledger-003.json is missing, and .*class-003 has spent 2 of its entries: restore both"),
        (cut, "is damaged"),
        (shortened, "is damaged"),
        (lowered, "is damaged"),
        (emptied, "is damaged"),
        (older, "ledger-003.json is older than .*class-003, which has spent more: restore both"),
        (without_receipt, "spent.json is missing, and the run has trained there"),
        (with_broken_receipt, "spent.json is damaged"),
    ],
)
@pytest.mark.parametrize("run", [A, B])
def test_a_ledger_that_is_not_that_of_its_store_stops_old_runs_and_new_ones(tmp_path, harm, says, run):
    pay(tmp_path, bill())
    shutil.copy(tmp_path / "ledger-003.json", tmp_path / "before.json")
    pay(tmp_path, bill(key="round 2"))
    harm(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=says) as error:
        pay(tmp_path, bill(run, "round 3"))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_older_than_the_ledger_is_no_loss_to_the_ledger(tmp_path):
    """A store from a backup beside a newer ledger: what was spent stays spent."""
    pay(tmp_path, bill())
    folder = class_folder(tmp_path, A, 3)
    shutil.copytree(folder, tmp_path / "backup")
    pay(tmp_path, bill(key="round 2"))
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    assert [entry.key for entry in pay(tmp_path, bill(key="round 2"))] == ["round 1", "round 2"]


def test_a_limit_is_refused_where_a_run_has_sent_what_nothing_bounds(tmp_path):
    folder = class_folder(tmp_path, B, 3)
    folder.mkdir(parents=True)
    (folder / "round-000007.safetensors").touch()
    with pytest.raises(UserError, match="is of a run that sent what no epsilon bounds"):
        pay(tmp_path, bill(), epsilon=8.0)
    assert len(pay(tmp_path, bill())) == 1  # with no limit there is nothing that could be broken
    with pytest.raises(UserError, match=r"spent.json is missing, and the run has trained there"):
        pay(tmp_path, bill(B))


def test_relations_that_do_not_add_up_are_not_mixed(tmp_path):
    pay(tmp_path, bill())
    with pytest.raises(UserError, match=r"by replace-one .* counts by add-or-remove-one, which does not add up"):
        pay(tmp_path, bill(key="round 2", relation="add-or-remove-one"))


def test_a_ledger_of_another_version_is_not_read(tmp_path):
    pay(tmp_path, bill())
    path = tmp_path / "ledger-003.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(UserError, match="another version of fedmutual"):
        pay(tmp_path, bill(key="round 2"))
