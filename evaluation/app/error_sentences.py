"""What a visitor sees of an error: one sentence."""

import functools
from collections.abc import Callable
from typing import Any

from diffusers.utils import logging

from tcae_diffusers.trainer.user_errors import USER_ERRORS, error_message

logger = logging.get_logger(__name__)


def with_sentences(answer: Callable[..., Any]) -> Callable[..., Any]:
    """`answer`, a function that answers an event of the page, with errors that the page shows as a sentence."""

    @functools.wraps(answer)
    def answer_or_say(*arguments: Any, **named: Any) -> Any:
        import gradio as gr

        try:
            return answer(*arguments, **named)
        except USER_ERRORS as error:
            sentence = " ".join(error_message(error).split())
            raise gr.Error(sentence[:1].upper() + sentence[1:], print_exception=False) from error
        except Exception as error:
            logger.exception("an answer failed")
            sentence = "The server could not answer this; its log says why."
            raise gr.Error(sentence, print_exception=False) from error

    return answer_or_say
