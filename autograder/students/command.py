"""Commands that students run, with typer's own words in their language too: headings of the help, and what a bad option is told.

`--lang` counts here as it does for the command itself, then the environment. Typer translates none of this: its headings are
constants of `typer.rich_utils`, its errors are put together in English, so that their translation is found like that of
sentences of the judge.

Not covered: `autograder --help`, most of which is for instructors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from typer import TyperException, rich_utils
from typer.core import TyperCommand

from autograder import language
from autograder.language import ENGLISH, N_, Language, LanguageError, _, said

__all__ = ["StudentCommand"]

TYPER_SAYS = (
    "No such option: {0}",
    "No such option: {0} (Possible options: {1})",
    "Missing argument {0}.",
    "Option {0} requires an argument.",
    "Option {0} does not take a value.",
    "Got unexpected extra argument(s) ({0})",
)
"""The catalogue has them from here: they are written in typer."""
HEADINGS = {
    "ARGUMENTS_PANEL_TITLE": N_("Arguments"),
    "OPTIONS_PANEL_TITLE": N_("Options"),
    "ERRORS_PANEL_TITLE": N_("Error"),
    "DEFAULT_STRING": N_("[default: {}]"),
    "REQUIRED_LONG_STRING": N_("[required]"),
    "RICH_HELP": N_("Try [blue]'{command_path} {help_option}'[/] for help."),
}
"""Constants of `typer.rich_utils`, which are read when something is printed."""


class StudentCommand(TyperCommand):
    """A command in the language that was asked for. One runs per process, so nothing is set back."""

    spoken: Language = ENGLISH

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As typer does, in the language that the arguments or the environment ask for."""
        self.spoken = _language(args)
        with language.use(self.spoken):
            for each in (self, *self.params):
                if text := getattr(each, "help", None):
                    each.help = _(text)  # type: ignore[attr-defined]
            for name, text in HEADINGS.items():
                setattr(rich_utils, name, _(text))
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An error's text is translated before typer prints it."""
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            text = said(error.format_message())
            error.format_message = lambda: text  # type: ignore[method-assign]
            raise

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Also called for an error, when the context is gone."""
        with language.use(self.spoken):
            formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), _("Usage: "))

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, explained."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = self.spoken.catalogue.gettext(N_("Show this message and exit."))
        return option


def _language(args: Sequence[str]) -> Language:
    """The language in `args`, else the environment's. One that is not there is the command's own to refuse."""
    wishes = [value for name, value in itertools.pairwise(args) if name == "--lang"]
    wishes += [each.removeprefix("--lang=") for each in args if each.startswith("--lang=")]
    try:
        return language.load(language.chosen(next(iter(wishes), None)))
    except LanguageError:
        return language.load(language.chosen())
