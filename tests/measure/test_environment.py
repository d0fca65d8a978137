"""Memory that is left where control groups of Slurm, Kubernetes or Docker limit it: folders stand in for theirs."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from petl_bench.measure import available_memory_bytes

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 GiB free; writes the groups of a process, and returns what it may still take."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))

    def left(own, files):
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        (tmp_path / "own").write_text(own)
        return available_memory_bytes(tmp_path / "cgroup", tmp_path / "own")

    return left


def v2(folder, limit, used, cached=0, high="max"):
    return {
        f"{folder}/memory.max": limit, f"{folder}/memory.high": high, f"{folder}/memory.current": used,
        f"{folder}/memory.stat": f"anon 5\ninactive_file {cached}\nactive_file 7",
    }  # fmt: skip


def v1(folder, limit, used, cached=0):
    return {
        f"memory/{folder}/memory.limit_in_bytes": limit, f"memory/{folder}/memory.usage_in_bytes": used,
        f"memory/{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cached}",
    }  # fmt: skip


def test_without_groups_it_is_what_the_system_has(machine, tmp_path):
    assert machine("0::/\n", {}) == 64 * GIB
    assert available_memory_bytes(tmp_path / "none", tmp_path / "nothing") == 64 * GIB


@pytest.mark.parametrize("own", ["0::/kubepods/pod7/main\n", "1:name=systemd:/x\n0::/kubepods/pod7/main\n"])
def test_the_tightest_group_of_version_2_holds(machine, own):
    groups = v2("kubepods", 40 * GIB, 30 * GIB) | v2("kubepods/pod7", 8 * GIB, 6 * GIB)
    assert machine(own, groups | v2("kubepods/pod7/main", "max", 5 * GIB)) == 2 * GIB


def test_pages_of_files_count_as_free_and_throttling_as_a_limit(machine):
    assert machine("0::/job\n", v2("job", 8 * GIB, 7 * GIB, cached=3 * GIB)) == 4 * GIB
    assert machine("0::/job\n", v2("job", 8 * GIB, 5 * GIB, high=6 * GIB)) == GIB


def test_a_group_over_its_limit_leaves_nothing(machine):
    assert machine("0::/job\n", v2("job", 8 * GIB, 5 * GIB, high=4 * GIB)) == 0


def test_a_slurm_job_of_version_1(machine):
    own = "5:cpu,cpuacct:/slurm/job_1\n4:memory:/slurm/uid_0/job_1/step_0\n1:name=systemd:/x\n"
    groups = v1("slurm/uid_0/job_1/step_0", UNLIMITED_V1, 3 * GIB)
    assert machine(own, groups | v1("slurm/uid_0/job_1", 16 * GIB, 4 * GIB, cached=GIB)) == 13 * GIB


def test_a_group_of_another_controller_limits_no_memory(machine):
    own = "5:cpu:/small\n4:memory:/large\n"
    assert machine(own, v1("small", GIB, 0) | v1("large", 9 * GIB, 0)) == 9 * GIB


@pytest.mark.parametrize(
    ("own", "groups"),
    [
        # Docker names the host's group, and mounts the container's own as the root.
        ("0::/system.slice/docker-1f.scope\n", v2(".", 4 * GIB, GIB)),
        ("4:memory:/docker/1f\n", v1(".", 4 * GIB, GIB)),
        ("0::/../../elsewhere\n", v2(".", 4 * GIB, GIB)),
    ],
)
def test_a_container_s_root_group_counts(machine, own, groups):
    assert machine(own, groups) == 3 * GIB


def test_the_cache_of_features_asks_for_it(tiny, monkeypatch):
    """Features that would fill the job's memory go to the disk, however much memory the machine has."""
    from petl_bench.run.run import run

    settings = ["method=head", "train.epochs=3", "train.device=cpu"]
    assert run(tiny(*settings)).frozen.cache == "memory"
    monkeypatch.setattr("petl_bench.frozen.batch_source.available_memory_bytes", lambda: 1000)
    assert run(tiny(*settings, "force=true")).frozen.cache == "disk"
