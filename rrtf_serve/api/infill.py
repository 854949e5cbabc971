"""Fill in the middle, the same for every dialect: what an editor sent becomes a job.

    infill = Infill(prefix, suffix, filename="a.py", max_tokens=64)
    job = await infill_job(served, settings, infill, sampling, editor=editor_of(request, "tabby", infill))

An editor sends what it has; what doesn't fit goes. The prompt keeps within the context, and for an
interactive request within what the model reads in `first_token_seconds` too, at the speed that was measured
when it was loaded. First the snippets go, then the ends of prefix and suffix that are far from the cursor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest

from rrtf_serve.api.encoding import encode, encode_for_editor
from rrtf_serve.api.errors import ApiError, context_length_exceeded, invalid_value, unsupported
from rrtf_serve.api.generation import Job
from rrtf_serve.api.options import check_rows
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.trimming import Cursor
from rrtf_serve.engine.protocol import Sampling
from rrtf_serve.engine.ticket import Editing
from rrtf_serve.models.families import FAMILIES, Fim
from rrtf_serve.models.prompts import PromptError, Setting

DEFAULT_MAX_TOKENS = 128  # where an editor names no limit
LEAST_PROMPT = 64  # tokens that an interactive prompt may have however slow the model is: less says nothing


@dataclass(frozen=True)
class Snippet:
    """A piece of another file that may help."""

    filename: str
    text: str


@dataclass(frozen=True)
class Infill:
    """What stands around the cursor, and what is asked for."""

    prefix: str
    suffix: str
    filename: str | None = None
    snippets: tuple[Snippet, ...] = ()  # the most useful first
    repository: str | None = None
    user: str | None = None  # who types, as the client names them
    max_tokens: int = DEFAULT_MAX_TOKENS
    stops: tuple[str, ...] = ()
    interactive: bool = True  # somebody waits for it: keep to the latency budget, end it as editors expect
    min_tokens: int = 0
    first_token_seconds: float | None = None  # this request's own budget; None: the server's; 0: none
    prompt_tokens: int | None = None  # the prompt is cut to so many in any case


async def infill_job(
    served: Served,
    settings: ApiSettings,
    infill: Infill,
    sampling: Sampling,
    *,
    copies: int = 1,
    editor: Editing | None = None,
) -> Job:
    """One prompt, `copies` rows. A model that can't fill in the middle goes on with the prefix where nothing
    follows it. Raises ApiError 400 where something does, or where nothing fits beside `max_tokens`; an
    interactive request's `max_tokens` shrinks instead."""
    check_rows(settings, 1, copies)
    if not served.prompts.has_infill and infill.suffix.strip():
        raise no_infill(served)
    context = served.scheduler.capabilities.max_context
    completion = min(infill.max_tokens, context // 2) if infill.interactive else infill.max_tokens
    if completion >= context:
        raise context_length_exceeded(1, completion, context, ("prompt",))
    budget = context - completion
    if infill.interactive:
        longest = settings.max_prompt_tokens or context
        budget = min(budget, longest, _readable(served, settings, infill, copies))
    if infill.prompt_tokens is not None:
        budget = min(budget, infill.prompt_tokens)
    encoding = encode_for_editor if infill.interactive else encode
    ids, cursor = await encoding(_read, served, infill, budget)
    return Job(
        (ids,),
        copies,
        (completion,),
        sampling,
        served.prompts.completion_end_ids,
        infill.stops + served.prompts.middle_stops(infill.prefix, infill.suffix),
        interactive=infill.interactive,
        editor=editor if infill.interactive else None,
        cursor=cursor,
        min_tokens=min(infill.min_tokens, completion),
    )


def no_infill(served: Served) -> ApiError:
    return unsupported(
        ("suffix",),
        f"The model '{served.name}' (family '{served.card.family}') has no fill-in-the-middle tokens; "
        "leave it out, or serve a model that has them, such as qwen2.5-coder or starcoder.",
    )


def _read(served: Served, infill: Infill, budget: int) -> tuple[tuple[int, ...], Cursor | None]:
    prompts = served.prompts
    setting = Setting(
        infill.filename or "",
        tuple((snippet.filename, snippet.text) for snippet in infill.snippets),
        infill.repository or "",
    )
    try:
        if prompts.has_infill:
            ids = prompts.infill_limited(infill.prefix, infill.suffix, budget, setting)
        else:
            ids = prompts.continuation_limited(infill.prefix, budget)
    except PromptError as error:
        raise invalid_value(("suffix",), str(error)) from error
    if not ids:
        raise invalid_value(("prompt",), "it is empty; the model needs at least one token to start from.")
    if not infill.interactive or infill.min_tokens:
        return tuple(ids), None
    return tuple(ids), Cursor(infill.prefix, infill.suffix, infill.filename)


def _readable(served: Served, settings: ApiSettings, infill: Infill, copies: int) -> int:
    """Tokens of prompt that are read within the budget; each row reads them for itself."""
    seconds = infill.first_token_seconds
    if seconds is None:
        seconds = settings.first_token_seconds
    most = served.scheduler.capabilities.max_context
    if not seconds or served.prefill_speed is None:
        return most
    return max(LEAST_PROMPT, int(min(most, seconds * served.prefill_speed / copies)))


def marked(text: str) -> Infill | None:
    """What a prompt holds that a client has put together of some family's markers by itself, in the order
    prefix, suffix, middle; None where it is no such prompt, or where code holds markers, too.

    Clients often send StarCoder's whatever the model is (llm-ls does so by default). Continue puts files of
    the repository before Qwen's.
    """
    for fim in _MARKERS:
        if (parts := fim.taken_apart(text)) is None:
            continue
        head, prefix, suffix = parts
        if not head.strip():
            return Infill(prefix, suffix)
        if (found := _repository(fim, head)) is not None:
            return replace(found, prefix=prefix, suffix=suffix)
    return None


def _repository(fim: Fim, head: str) -> Infill | None:
    """What stands before the prefix marker where a family has files there: the repository's name, files as
    name and text, and the name of the file to fill, each of which may be missing; None where it is anything
    else."""
    if fim.files not in ("before", "between"):
        return None
    name, *files = head.split(fim.file)
    if (name.strip() and not name.startswith(fim.repo)) or name.count(fim.repo) > 1:
        return None
    others = [each.partition("\n") for each in files]
    # A last one with text is one more of the others, and nothing names the file to fill.
    own = others.pop()[0].strip() if others and not others[-1][2].strip() else ""
    # The nearest to the cursor is the most useful one.
    snippets = tuple(Snippet(title, text) for title, _, text in reversed(others))
    return Infill("", "", own or None, snippets, name.removeprefix(fim.repo).strip() or None)


def is_marked(served: Served, text: str) -> bool:
    """Whether an editor made the prompt of fill-in-the-middle markers: any family's around the cursor, or
    this model's in an order that `marked` doesn't know."""
    return holds_markers(served, text) or (served.prompts.has_infill and marked(text) is not None)


def holds_markers(served: Served, text: str) -> bool:
    """Whether the prompt holds this model's own markers, in whatever order."""
    fim = served.prompts.family.fim
    return fim is not None and served.prompts.has_infill and fim.prefix in text and fim.middle in text


_MARKERS = [family.fim for family in FAMILIES.values() if family.fim is not None]


def editor_of(request: HttpRequest, dialect: str, infill: Infill) -> Editing:
    """What is typed, for Job.editor. The text as it was sent, before anything of it is cut."""
    client = request.client.host if request.client else ""
    who = (client, dialect, infill.user or "", infill.repository or "", infill.filename or "")
    return Editing(who, infill.prefix, infill.suffix, named=bool(infill.filename))
