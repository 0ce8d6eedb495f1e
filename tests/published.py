"""Random models of transformers, for the tests that import them: small, or in published shapes."""

from __future__ import annotations

import numpy as np

# By name: the class of the model, that of its configuration, and what differs from BASE.
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
FAMILIES = {
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config"),
    "pretraining": ("Wav2Vec2ForPreTraining", "Wav2Vec2Config"),
    "hubert": ("HubertModel", "HubertConfig"),
    "wavlm": ("WavLMModel", "WavLMConfig"),
}
SIZES = {"base": {}, "large": {**LARGE, "conv_bias": True}}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_TINY_BUCKETS = {"num_buckets": 8, "max_bucket_distance": 12}
_TINY_QUANTIZER = {
    "num_codevectors_per_group": 4,
    "codevector_dim": 6,
    "proj_codevector_dim": 10,
}
_NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}


def random_model(family, size="base", tiny=True, **changes):
    """A model with random weights, biases and scales too; without dropout."""
    import torch
    import transformers

    model_class, config_class = FAMILIES[family]
    options = {**SIZES[size], **_NO_DROPOUT}
    if tiny:
        options |= TINY
        options |= _TINY_BUCKETS if family == "wavlm" else {}
        options |= _TINY_QUANTIZER if family == "pretraining" else {}
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**options, **changes})
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():  # biases and scales start at 0 and 1, which would hide a mix-up
        for parameter in model.parameters():
            parameter += (0.1 if tiny else 0.01) * torch.randn_like(parameter)
    return model


def waveforms(*lengths):
    """f32[b, samples] of noise, zero after each length, and the lengths."""
    length = np.array(lengths, np.int32)
    shape = len(length), length.max()
    waveform = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return waveform * (np.arange(shape[1]) < length[:, None]), length
