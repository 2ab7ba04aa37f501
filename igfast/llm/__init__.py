"""Token attributions of language models: every token of an answer from one forward pass for each path point."""

from igfast.llm.attribution import LLMGradientAttribution as LLMGradientAttribution
from igfast.llm.result import LLMAttributionResult as LLMAttributionResult
