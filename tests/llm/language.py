"""Small random language models, a tokenizer of numbered words, and Captum's loop over the tokens of an answer."""

import captum.attr
import torch
import transformers
from captum.attr import TextTokenInput

import igfast

PROMPT = "w3 w10 w20 w30 w40 w50 w11"
ANSWER = "w9 w8 w7 w6 w5"
N_WORDS = 60
LLAMA = {
    "vocab_size": N_WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
BERT = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}


class Words:
    """A tokenizer whose token "w12" has the id 12."""

    pad_token_id, eos_token_id, bos_token_id = 1, 2, 3
    unk_token_id = mask_token_id = None

    def encode(self, text, return_tensors=None, add_special_tokens=True):
        ids = self.convert_tokens_to_ids(text.split())
        return torch.tensor([ids]) if return_tensors else ids

    def decode(self, ids):
        return " ".join(self.convert_ids_to_tokens([ids] if isinstance(ids, int) else list(map(int, ids))))

    def convert_ids_to_tokens(self, ids):
        return [f"w{number}" for number in ids]

    def convert_tokens_to_ids(self, tokens):
        return [int(token[1:]) for token in tokens]

    def get_vocab(self):
        return {f"w{number}": number for number in range(N_WORDS)}

    def __call__(self, text, return_offsets_mapping=False, add_special_tokens=True):
        ends = [len(" ".join(text.split()[: n + 1])) for n in range(len(text.split()))]
        starts = [end - len(word) for end, word in zip(ends, text.split(), strict=True)]
        return {"input_ids": self.encode(text), "offset_mapping": list(zip(starts, ends, strict=True))}


def model(name, dtype=torch.float64, **options):
    """A random network in evaluation mode, and the module that tokens are attributed at."""
    torch.manual_seed(0)
    made = transformers
    if name == "gpt2":
        config = made.GPT2Config(vocab_size=N_WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, **options)
        network = made.GPT2LMHeadModel(config)
        layer = network.transformer.wte
    elif name == "bloom":
        network = made.BloomForCausalLM(made.BloomConfig(vocab_size=N_WORDS, hidden_size=32, n_layer=2, n_head=4))
        layer = network.transformer.word_embeddings
    elif name == "mamba":
        config = made.MambaConfig(vocab_size=N_WORDS, hidden_size=32, num_hidden_layers=2, state_size=4)
        network = made.MambaForCausalLM(config)
        layer = network.backbone.embeddings
    elif name == "bert":
        network = made.BertLMHeadModel(made.BertConfig(**BERT, **options))
        layer = network.bert.embeddings.word_embeddings
    elif name in ("t5", "bart"):
        return _encoder_decoder(name, dtype)
    else:
        kind = {"block": "Llama", "llama": "Llama"}.get(name, name.capitalize())
        extra = {"head_dim": 8} if kind in ("Qwen3", "Gemma") else {}
        config = getattr(made, f"{kind}Config")(**{**LLAMA, **extra, **options})
        network = getattr(made, f"{kind}ForCausalLM")(config)
        layer = network.model.layers[0] if name == "block" else network.model.embed_tokens
    return network.to(dtype).eval(), layer


def _encoder_decoder(name, dtype):
    sizes = {"vocab_size": N_WORDS, "d_model": 32, "pad_token_id": 1, "decoder_start_token_id": 2}
    if name == "t5":
        config = transformers.T5Config(**sizes, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        network = transformers.T5ForConditionalGeneration(config)
        layer = network.encoder.embed_tokens
    else:
        ends = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        ends |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
        network = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **ends))
        layer = network.model.encoder.embed_tokens
    return network.to(dtype).eval(), layer


def prompt(**options):
    """The prompt, with padding tokens as its baseline."""
    return TextTokenInput(PROMPT, Words(), **{"baselines": 1, **options})


def captums(network, layer, inp, target=ANSWER, multiply_by_inputs=True, **options):
    """Captum's result, which it computes token by token. Its rules are rounded to float32, but for this one."""
    explainer = captum.attr.LayerIntegratedGradients(network, layer, multiply_by_inputs=multiply_by_inputs)
    options = {"n_steps": 8, "method": "riemann_middle", **options}
    return captum.attr.LLMGradientAttribution(explainer, Words()).attribute(inp, target, **options)


def ours(network, layer, inp, target=ANSWER, multiply_by_inputs=True, attr_target="log_prob", **options):
    """igfast's result, or what it returns instead."""
    explainer = igfast.LayerIntegratedGradients(network, layer, multiply_by_inputs=multiply_by_inputs)
    options = {"n_steps": 8, "method": "riemann_middle", **options}
    attribution = igfast.LLMGradientAttribution(explainer, Words(), attr_target=attr_target)
    return attribution.attribute(inp, target, **options)


def difference(one, other):
    """The largest difference, relative to the largest number."""
    return float((one - other).abs().max() / other.abs().max())
