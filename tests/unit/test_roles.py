"""What every role has in common."""

import re
from pathlib import Path
from typing import Any, Dict, List, Optional

import jinja2
import jinja2.nativetypes
import pytest
import yaml

# `host` is what the others import, and deploys nothing.
ROLES = sorted(
    path for path in (Path(__file__).parents[2] / "roles").iterdir() if path.is_dir() and path.name != "host"
)
FILES = [
    "README.md",
    "defaults/main.yml",
    "meta/argument_specs.yml",
    "meta/main.yml",
    "tasks/main.yml",
    "tasks/preflight.yml",
]
BLOCK = ("block", "rescue", "always")

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def options(role: Path) -> Any:
    return load(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


@each_role
@pytest.mark.parametrize("name", FILES)
def test_role_has_file(role: Path, name: str) -> None:
    assert (role / name).is_file()


@each_role
def test_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    specified = {name: option.get("default") for name, option in options(role).items()}

    assert load(role / "defaults/main.yml") == specified


@each_role
def test_public_variables_carry_the_roles_name_and_a_description(role: Path) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_")
        assert option["description"], name
        assert option["type"], name


@each_role
def test_internal_variables_carry_two_underscores(role: Path) -> None:
    files = [path for path in (role / "vars").glob("*.yml") if path.is_file()]

    assert [name for path in files for name in load(path) if not name.startswith(f"__{role.name}_")] == []


@each_role
def test_readme_names_every_variable(role: Path) -> None:
    readme = (role / "README.md").read_text()

    assert [name for name in options(role) if name not in readme] == []


@each_role
def test_host_is_judged_in_one_place(role: Path) -> None:
    preflight = load(role / "tasks/preflight.yml")

    assert preflight[0]["ansible.builtin.import_role"] == {"name": "host"}
    assert "'20.04'" not in (role / "tasks/preflight.yml").read_text()


@each_role
def test_tasks_only_import_the_phases(role: Path) -> None:
    first, *tasks = load(role / "tasks/main.yml")
    actions = [key for task in tasks for key in task if key.startswith("ansible.builtin.")]
    phases = [task["ansible.builtin.import_tasks"] for task in tasks if "ansible.builtin.import_tasks" in task]

    included = [task["ansible.builtin.include_tasks"] for task in tasks if "ansible.builtin.include_tasks" in task]

    assert set(actions) <= {
        *("ansible.builtin.import_tasks", "ansible.builtin.include_tasks", "ansible.builtin.import_role"),
        "ansible.builtin.meta",
    }
    # Seldom wanted: imported, each of its tasks would be skipped on its own.
    assert [phase["file"] for phase in included] == ["remove.yml"]
    if "ansible.builtin.import_tasks" in first:
        assert first["ansible.builtin.import_tasks"] == "preflight.yml"
    else:  # a playbook may have begun with it
        assert first["ansible.builtin.include_tasks"]["file"] == "preflight.yml"
        assert first["ansible.builtin.include_tasks"]["apply"]["tags"] == first["tags"]
    assert all((role / "tasks" / phase).is_file() for phase in phases)


@each_role
def test_role_can_be_removed_again(role: Path) -> None:
    assert options(role)[f"{role.name}_state"]["default"] == "present"


@each_role
def test_files_and_templates_have_an_explicit_mode(role: Path) -> None:
    modules = ("ansible.builtin.copy", "ansible.builtin.template", "ansible.builtin.get_url")
    tasks = [task for path in (role / "tasks").glob("*.yml") for task in flat(load(path))]

    for task in tasks:
        for module in modules:
            assert module not in task or isinstance(task[module].get("mode"), str), task["name"]


@each_role
def test_packages_wait_for_another_package_manager_and_need_no_other_repository(role: Path) -> None:
    files = [list(flat(load(path))) for path in sorted((role / "tasks").glob("*.yml"))]
    packages = [task["ansible.builtin.apt"] for tasks in files for task in tasks if "ansible.builtin.apt" in task]

    assert [package["lock_timeout"] for package in packages] == [600] * len(packages)
    # One broken repository would fail them; roles/host/tasks/apt_update.yml names it and goes on.
    assert [name for package in packages for name in package if name in ("update_cache", "cache_valid_time")] == []


@each_role
def test_systemd_judges_drop_ins_before_they_are_in_place(role: Path) -> None:
    tasks = [task for path in (role / "tasks").glob("*.yml") for task in flat(load(path))]
    templates = [task["ansible.builtin.template"] for task in tasks if "ansible.builtin.template" in task]

    for template in templates:
        unit = re.fullmatch(r"/etc/systemd/system/(.+[.]service)[.]d/.+", template["dest"])
        if unit:
            assert "verify_drop_in.sh" in template.get("validate", ""), template["dest"]
            assert template["validate"].endswith(f" - %s {unit[1]}")


def flat(tasks: Any) -> Any:
    """Return tasks with those of their blocks in a row."""
    for task in tasks:
        yield task
        for part in BLOCK:
            yield from flat(task.get(part, []))


def conditional(role: Path, tasks: Any, condition: str = "") -> Any:
    """Return (task, its conditions and those of all that it is in), with the tasks of imported and included files."""
    for task in tasks:
        conditions = f"{condition} {task.get('when', '')}".strip()
        yield task, conditions
        imported = task.get("ansible.builtin.import_tasks")
        included = task.get("ansible.builtin.include_tasks")
        if included:  # its tasks run for those hosts alone that include it
            included = included["file"] if isinstance(included, dict) else included
            yield from conditional(role, load(role / "tasks" / included))
        parts = [load(role / "tasks" / imported)] if imported else [task.get(part, []) for part in BLOCK]
        for part in parts:
            yield from conditional(role, part, conditions)


@each_role
def test_what_runs_once_does_not_depend_on_the_first_host(role: Path) -> None:
    variables = load(role / "vars/main.yml") if (role / "vars/main.yml").is_file() else {}
    of_all = ["ansible_play_hosts", *(name for name, value in variables.items() if "ansible_play_hosts" in str(value))]

    wrong = [
        task["name"]
        for task, conditions in conditional(role, load(role / "tasks/main.yml"))
        if task.get("run_once") and conditions and not any(name in conditions for name in of_all)
    ]

    assert wrong == [], "the first host's condition decides for all"


@pytest.mark.parametrize("python", ["3.8", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_torch_of_each_interpreter_has_a_checksum(python: str) -> None:
    (role,) = (role for role in ROLES if role.name == "model_server")
    variables = load(role / "vars/main.yml")
    version = jinja2.Template(variables["__model_server_torch_version"]).render(
        model_server_torch_version="", __model_server_python_version=python
    )

    digest = variables["__model_server_index_hashes"][f"{python} x86_64"][f"torch-{version}"]

    assert re.fullmatch("[0-9a-f]{64}", digest)


@pytest.mark.parametrize(
    ("manifest", "python", "locks"),
    [
        ({"engine": "onnxruntime"}, "3.11", ["requirements.txt", "requirements-onnxruntime.txt"]),
        ({"engine": "ncnn"}, "3.9", ["requirements.txt", "requirements-ncnn.txt"]),
        ({"engine": "ncnn"}, "3.8", ["requirements.txt", "requirements-pip.txt", "requirements-ncnn.txt"]),
        ({"engine": "torch"}, "3.8", ["requirements.txt"]),
        ({}, "3.8", ["requirements.txt"]),
        (None, "3.8", ["requirements.txt"]),
    ],
    ids=["onnxruntime", "ncnn", "old_pip", "torch", "earlier", "none"],
)
def test_other_engines_are_installed_for_bundles_that_need_them(
    manifest: Optional[Dict[str, str]], python: str, locks: List[str]
) -> None:
    (role,) = (role for role in ROLES if role.name == "model_server")
    variables = load(role / "vars/main.yml")
    environment = jinja2.nativetypes.NativeEnvironment()
    known: Dict[str, Any] = {
        "__model_server_given": manifest is not None,
        "__model_server_named": manifest or {},
        "__model_server_python_version": python,
        "model_server_torchvision": False,
    }
    for name in ("other_engine", "engine_locks", "locks"):  # lists: this environment is a native one
        template = environment.from_string(variables[f"__model_server_{name}"])
        known[f"__model_server_{name}"] = template.render(known)
    wanted = known["__model_server_locks"]
    assert wanted == locks
    assert all((role / "files" / lock).exists() for lock in wanted)


@pytest.mark.parametrize(("torch", "torchvision"), [("2.4.1", "0.19.1"), ("2.8.0", "0.23.0"), ("2.13.0", "0.28.0")])
def test_torchvision_fits_torch(torch: str, torchvision: str) -> None:
    (role,) = (role for role in ROLES if role.name == "model_server")
    template = load(role / "vars/main.yml")["__model_server_torchvision_version"]

    assert jinja2.Template(template).render(__model_server_torch_version=torch) == torchvision
