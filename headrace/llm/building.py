"""The settings' language model."""

from headrace.llm.caller import Caller
from headrace.llm.port import LanguageModel, Provider
from headrace.llm.prompts import load_templates
from headrace.llm.settings import LLMSettings


def build(settings: LLMSettings) -> LanguageModel | None:
    """The model that writes answers; None where the deployment has none.

    Asks nothing of the provider: a key or a name that it refuses shows when it is first asked. Raises Misconfigured
    when a template is missing or no use.
    """
    load_templates(settings)
    if settings.provider == "none":
        return None
    return Caller(_provider(settings), settings)


def _provider(settings: LLMSettings) -> Provider:
    if settings.provider == "openai":
        from headrace.llm.openai_chat import OpenAIProvider

        return OpenAIProvider(settings)
    from headrace.llm.anthropic_messages import AnthropicProvider

    return AnthropicProvider(settings)
