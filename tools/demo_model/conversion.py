"""From a torch checkpoint to a folder that the unmodified faster_whisper loads."""

import json
from pathlib import Path

import torch
from ctranslate2.converters.transformers import WhisperLoader
from tokenizers import Tokenizer
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tools.demo_model.network import (
    AUDIO_POSITIONS,
    MEL_BANDS,
    TEXT_POSITIONS,
    Shape,
    weights_for_transformers,
)
from tools.demo_model.phrases import END_OF_TEXT, LANGUAGES, START, token_id

PREPROCESSOR = {
    "feature_size": MEL_BANDS,
    "sampling_rate": 16000,
    "hop_length": 160,
    "chunk_length": 30,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
}


def convert(checkpoint: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Writes config.json, model.bin (int8), preprocessor_config.json, tokenizer.json and vocabulary.json."""
    saved = torch.load(checkpoint)
    shape = Shape(**saved["shape"])
    # Never the end of text nor a lone space as first token: as in Whisper's own configuration.
    never_first = [token_id(tokenizer, "Ġ"), token_id(tokenizer, END_OF_TEXT)]
    network = WhisperForConditionalGeneration(_configuration(shape, tokenizer, never_first))
    fit = network.load_state_dict(weights_for_transformers(saved["network"]), strict=False)
    if fit.missing_keys or fit.unexpected_keys:
        raise ValueError(f"{checkpoint} does not fit: {fit}")
    loader = WhisperLoader()
    spec = loader.get_model_spec(network.eval())
    tokens = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    loader.set_vocabulary(spec, [tokens[number] for number in range(shape.vocabulary)])
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = never_first
    spec.config.lang_ids = [token_id(tokenizer, f"<|{language}|>") for language in LANGUAGES]
    spec.config.alignment_heads = [[shape.decoder_layers - 1, head] for head in range(shape.heads)]
    spec.validate()
    spec.optimize(quantization="int8")
    out.mkdir(parents=True, exist_ok=True)
    spec.save(str(out))
    compact = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact, encoding="utf-8")
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")


def _configuration(shape: Shape, tokenizer: Tokenizer, never_first: list[int]) -> WhisperConfig:
    end = token_id(tokenizer, END_OF_TEXT)
    return WhisperConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        num_mel_bins=MEL_BANDS,
        max_source_positions=AUDIO_POSITIONS,
        max_target_positions=TEXT_POSITIONS,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=token_id(tokenizer, START),
        suppress_tokens=[],
        begin_suppress_tokens=never_first,
    )
