"""Tiny random models of the real rewards' architectures, written as their folders on the hub are."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

TEXT = "a an the of red blue green ring star cross two three left right and yes no photo one"
WORDS = TEXT.split()
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def tokenizer(length: int = 16, extra: tuple[str, ...] = (), mask: bool = True):
    """Words to numbers, with an end token, as a fast tokenizer of transformers."""
    special = ["<pad>", "<unk>", "<s>", "</s>", *extra]
    vocab = {word: i for i, word in enumerate([*special, *WORDS, "Yes", "No"])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(extra),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"] if mask else ["input_ids"],
    )


def spread(net, scale: float = 2.0):
    """The same network with larger weights, so that its outputs differ between pictures."""
    with torch.no_grad():
        for weights in net.parameters():
            if weights.ndim > 1:
                weights.mul_(scale)
    return net.eval()


def clip_folder(folder: Path, scale: float = 2.0) -> Path:
    """Weights, tokenizer and image processor of a tiny CLIPModel."""
    torch.manual_seed(0)
    words = tokenizer()
    text = {
        **TOWER,
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    spread(CLIPModel(config), scale).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def siglip_folder(folder: Path, scale: float = 2.0) -> Path:
    """The same of a tiny SiglipModel."""
    torch.manual_seed(0)
    words = tokenizer(mask=False)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    spread(SiglipModel(config), scale).save_pretrained(folder)
    words.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def bert_tokenizer(folder: Path) -> Path:
    """BERT's tokenizer with few words."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def llava_folder(folder: Path) -> Path:
    """A tiny LLaVA: a CLIP tower before a Llama, with a chat template."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = tokenizer(length=64, extra=("<image>",))
    text = LlamaConfig(
        **TOWER,
        num_key_value_heads=2,
        vocab_size=len(words),
        max_position_embeddings=128,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    spread(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(**size),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}{% for c in m['content'] %}"
            "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
    ).save_pretrained(folder)
    return folder


def owl_folder(folder: Path, kind: str = "owlv2") -> Path:
    """A tiny OWLv2 or OWL-ViT."""
    import transformers as t

    torch.manual_seed(0)
    words = tokenizer()
    text = {
        **TOWER,
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    name = {"owlv2": "Owlv2", "owlvit": "OwlViT"}[kind]
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=VISION, projection_dim=32)
    spread(getattr(t, f"{name}ForObjectDetection")(config)).save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}}
    if kind == "owlvit":
        size["do_center_crop"] = False
    processor = getattr(t, f"{name}ImageProcessor")(**size)
    getattr(t, f"{name}Processor")(image_processor=processor, tokenizer=words).save_pretrained(
        folder
    )
    return folder


def grounding_folder(folder: Path) -> Path:
    """A tiny Grounding DINO: Swin, BERT and deformable attention."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    words = BertTokenizerFast(vocab=vocab)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=12,
        depths=[1, 1, 1],
        num_heads=[1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3"],
    )
    text = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=48,
        decoder_attention_heads=2,
        num_queries=12,
        num_feature_levels=3,
        max_text_len=32,
    )
    GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor=images, tokenizer=words).save_pretrained(folder)
    return folder


def blip2_folder(folder: Path) -> Path:
    """A tiny BLIP-2 before a T5: an encoder and a decoder, and no chat template."""
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        T5Config,
    )

    torch.manual_seed(0)
    words = tokenizer(length=64, extra=("<image>",))
    text = T5Config(
        vocab_size=len(words),
        d_model=32,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=words.pad_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**TOWER, "encoder_hidden_size": 32, "vocab_size": 20},
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    config.use_decoder_only_language_model = False
    spread(Blip2ForConditionalGeneration(config), 3.0).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)
    return folder
