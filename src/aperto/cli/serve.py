"""`aperto serve`: models of this machine behind the APIs that clients know."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, PrecisionOption, ThreadsOption
from aperto.config import prompt_cache_dir
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.server import ServerSettings

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_DURATIONS = {"s": 1.0, "m": 60.0, "h": 3600.0}


ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="Models to serve: nano, a pulled org/name, or a path. The first is loaded at once, "
        "others when they are asked for. Default: the default_model of the settings.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    ctx: typer.Context,
    models: ModelsArgument = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="An adapter or intervention file of the first model, served beside it as "
            "MODEL:NAME. May be repeated.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Key that clients must send. May be repeated."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with a key a line, which other users of the machine do not see."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web origin that may call; repeatable, '*' is all."),
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Answers computed at once; others wait.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that may wait; more get status 429.")
    ] = 2048,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest body of a request.")
    ] = "64M",
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="Longest prompt and answer together."),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="Tokens held for all requests. Default: one context."
        ),
    ] = None,
    prompt_cache: Annotated[
        str,
        typer.Option(
            metavar="DIR|on|off",
            help="Save long shared prompts on disk, so that a restart need not compute them again: "
            "on takes a folder of the cache, off keeps all in memory.",
        ),
    ] = "off",
    prompt_cache_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Most that saved prompts take of the disk."),
    ] = "4G",
    idle_unload: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Unload models unused for this long (30s, 10m, 2h)."),
    ] = None,
    memory_cap: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of all loaded models together (12G)."),
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="A tool that the server runs where a request asks for it: python, browser:FOLDER, "
            "apply_patch:FOLDER, mcp:COMMAND and others. May be repeated.",
        ),
    ] = None,
    unsandboxed: Annotated[
        bool,
        typer.Option(
            "--unsandboxed", help="Let the python tool run where this machine has no sandbox."
        ),
    ] = False,
    moderation_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A model that judges for /v1/moderations, such as a safeguard."
        ),
    ] = None,
    moderation_policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Policy it judges by. Default: the package's own."),
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Serve models behind the APIs of OpenAI and others, and a chat page in the browser.

    Ctrl-C finishes the answers that are under way; a second one cuts them.
    """
    settings = settings_of(ctx, log_level)
    from aperto.server import ServerSettings

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together; give both or none")
    chosen = ServerSettings(
        models=tuple(models or (settings.default_model,)),
        adapters=_adapters_of(adapter or ()),
        host=host,
        port=port,
        api_keys=(*(api_key or ()), *_keys_of(api_key_file)),
        cors_origins=tuple(cors_origin or ()),
        check_host=is_loopback(host),
        precision=precision.value if precision else settings.precision,
        threads=threads or settings.threads or None,
        context_tokens=context or settings.context or None,
        cache_tokens=cache_tokens,
        prompt_cache=_prompt_folder(prompt_cache, settings.cache_dir),
        prompt_cache_bytes=size_of(prompt_cache_size, "--prompt-cache-size"),
        max_concurrency=max_concurrency,
        max_waiting=max_waiting,
        max_body_bytes=size_of(max_body, "--max-body"),
        idle_unload_s=None if idle_unload is None else seconds_of(idle_unload, "--idle-unload"),
        memory_cap_bytes=None if memory_cap is None else size_of(memory_cap, "--memory-cap"),
        moderation_model=moderation_model,
        moderation_policy=moderation_policy,
        system=settings.system,
        tools=tuple(tool or ()),
        allow_unsandboxed=unsandboxed,
    )
    _try_tools(chosen)
    _run(chosen, _checked_tls(tls_cert, tls_key))


def _adapters_of(options: Sequence[str]) -> dict[str, Path]:
    adapters: dict[str, Path] = {}
    for option in options:
        name, equals, folder = option.partition("=")
        if not (name and equals and folder) or name in adapters:
            raise UsageError(f"--adapter is {option!r}; expected NAME=DIR, each name once")
        adapters[name] = Path(folder).expanduser()
    return adapters


def size_of(text: str, option: str) -> int:
    """Bytes of a size such as 512M or 12GiB. Raises UsageError for what is no size."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} is {text!r}; expected a size such as 512M or 12G")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def seconds_of(text: str, option: str) -> float:
    """Seconds of a time such as 30s, 10m or 2h. Raises UsageError for what is no time."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} is {text!r}; expected a time such as 30s, 10m or 2h")
    return float(found[1]) * _DURATIONS[found[2] or "s"]


def _prompt_folder(choice: str, cache_dir: Path) -> Path | None:
    if choice == "on":
        return prompt_cache_dir(cache_dir)
    return None if choice == "off" else Path(choice).expanduser()


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys_of(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key; expected one a line")
    return keys


def _checked_tls(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Certificate and key, tried now, while what is wrong with them can be told well."""
    if cert is None or key is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"--tls-cert {cert} with --tls-key {key} cannot be used: {error}"
        ) from error
    return cert, key


def _try_tools(chosen: ServerSettings) -> None:
    """Open the tools once, so that what is wrong with them is told now and not to a client."""
    from aperto.tools import close_tools, open_tools

    close_tools(open_tools(chosen.tools, allow_unsandboxed=chosen.allow_unsandboxed))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; choose another "
            "with --host and --port"
        ) from error


def _run(chosen: ServerSettings, tls: tuple[Path, Path] | None) -> None:
    with _listen(chosen.host, chosen.port) as listener:
        chosen = dataclasses.replace(chosen, port=listener.getsockname()[1])
        try:
            asyncio.run(_serve(chosen, tls, listener))
        except KeyboardInterrupt:  # how a server that was stopped by Ctrl-C ends
            return


async def _serve(
    chosen: ServerSettings, tls: tuple[Path, Path] | None, listener: socket.socket
) -> None:
    import uvicorn

    from aperto.server import Services, create_app

    services = Services.create(chosen)
    typer.echo(f"aperto: loading {services.pool.names()[0]} ...", err=True)
    try:
        await services.pool.preload()
    except BaseException:
        await services.close()
        raise
    level = logging.getLogger("aperto").getEffectiveLevel()
    _share_log_handler()
    config = uvicorn.Config(
        create_app(services),
        log_config=None,
        access_log=level <= logging.INFO,
        lifespan="on",
        server_header=False,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    for line in greeting(chosen, services.pool.names(), has_tls=tls is not None):
        typer.echo(line, err=True)
    base = services.pool.names()[0]
    for name in services.pool.adapters(base):
        info = services.pool.variant_info(base, name)
        typer.echo(f"aperto: serving {info.name}, vetted: {info.vetted}", err=True)
    await uvicorn.Server(config).serve(sockets=[listener])


def _share_log_handler() -> None:
    """Let the web server's log go where the package's goes, at the same level."""
    ours, theirs = logging.getLogger("aperto"), logging.getLogger("uvicorn")
    theirs.setLevel(ours.getEffectiveLevel())
    theirs.propagate = False
    theirs.handlers[:] = ours.handlers


def greeting(chosen: ServerSettings, names: Sequence[str], *, has_tls: bool) -> list[str]:
    """What the operator is told: the address, the models, who can reach them."""
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    url = f"{'https' if has_tls else 'http'}://{host}:{chosen.port}"
    lines = [
        f"aperto: serving {', '.join(names)}",
        f"  chat page   {url}/",
        f"  OpenAI API  {url}/v1   (others: {url}/docs)",
        f"  reach       {_reach(chosen)}",
    ]
    if chosen.cors_origins:
        lines.append(f"  web pages   of {', '.join(chosen.cors_origins)} may call")
    if not is_loopback(chosen.host) and not chosen.api_keys:
        lines.append(
            "aperto: warning: everybody who reaches this address can use the models and their "
            "tools; set a key with --api-key-file, or listen at 127.0.0.1"
        )
    if not is_loopback(chosen.host) and chosen.api_keys and not has_tls:
        lines.append(
            "aperto: warning: keys and conversations cross the network unencrypted; use "
            "--tls-cert and --tls-key, or a proxy that does"
        )
    return [*lines, "Ctrl-C finishes running answers; a second one cuts them."]


def _reach(chosen: ServerSettings) -> str:
    where = "this machine only" if is_loopback(chosen.host) else "the network"
    return f"{where}, {'with a key' if chosen.api_keys else 'without a key'}"
