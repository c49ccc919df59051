"""The configuration files of client and server, read from TOML and checked as a whole."""

from __future__ import annotations

import stat
from pathlib import Path

from btrsync.config import checks
from btrsync.config.array_fields import ArrayConfig, array_problems, shared_array_problems
from btrsync.config.fields import ClientConfig, ClientEntry, JobConfig, ServerConfig, TargetConfig
from btrsync.config.reading import convert_table, read_table, readable_tables
from btrsync.errors import ConfigError

__all__ = [
    "CLIENT_FILE",
    "SERVER_FILE",
    "ArrayConfig",
    "ClientConfig",
    "ClientEntry",
    "JobConfig",
    "ServerConfig",
    "TargetConfig",
    "client_warnings",
    "load_client",
    "load_server",
]

CLIENT_FILE = Path("/etc/btrsync/btrsync.toml")
SERVER_FILE = Path("/etc/btrsync/server.toml")


def load_client(path: Path = CLIENT_FILE) -> ClientConfig:
    """Read and check the client's configuration.

    Raises ConfigError with all problems of the file at once.
    """
    table = read_table(path, "client")
    problems: list[str] = []
    config = convert_table(table, ClientConfig, "", problems, {"file": path})
    problems += checks.name_problems(table, ("targets", "jobs"))
    # Each table whose types are right is checked, even when its neighbour's are not.
    for name, target in readable_tables(table.get("targets"), TargetConfig).items():
        problems += checks.target_problems(f"targets.{name}", target)
    jobs = readable_tables(table.get("jobs"), JobConfig)
    for name, job in jobs.items():
        problems += checks.job_problems(f"jobs.{name}", job, table.get("targets"))
    problems += checks.shared_directory_problems(jobs)
    if config is None or problems:
        raise ConfigError(path, problems)
    return config


def load_server(path: Path = SERVER_FILE) -> ServerConfig:
    """Read and check the server's configuration.

    Raises ConfigError with all problems of the file at once.
    """
    table = read_table(path, "server")
    problems: list[str] = []
    config = convert_table(table, ServerConfig, "", problems, {"file": path})
    problems += checks.name_problems(table, ("clients", "arrays"))
    if table.get("clients") == {}:
        problems.append("clients: is empty, so no client could connect; name one, or remove the table")
    if isinstance(table.get("root"), str):
        problems += checks.path_problems("root", Path(table["root"]))
    problems += checks.checkpoint_problems(table.get("checkpoint_bytes"))
    problems += checks.server_directory_problems(readable_tables(table.get("clients"), ClientEntry))
    arrays = readable_tables(table.get("arrays"), ArrayConfig)
    for name, array in arrays.items():
        problems += array_problems(f"arrays.{name}", array)
    problems += shared_array_problems(arrays)
    if config is None or problems:
        raise ConfigError(path, problems)
    return config


def client_warnings(config: ClientConfig) -> list[str]:
    """Return what is odd but allowed: a target that no job names, a private key that others can read.

    Looks at the keys' modes, unlike `load_client`, which reads the configuration only.
    """
    used = {name for job in config.jobs.values() for name in job.targets}
    warnings = [
        f"targets.{name}: no job names this target; add it to a job's targets, or remove it"
        for name in config.targets
        if name not in used
    ]
    for name, target in config.targets.items():
        if target.key is None:
            continue
        try:
            mode = stat.S_IMODE(target.key.stat().st_mode)
        except OSError as error:
            warnings.append(f"targets.{name}.key: {target.key}: {error.strerror}; ssh-keygen(1) makes a key")
            continue
        if mode & 0o077:
            warnings.append(
                f"targets.{name}.key: {target.key} has mode {mode:04o}, and ssh refuses a key that others"
                f" can read; chmod 600 {target.key}"
            )
    return warnings
