"""KroneckerEmbedding in somebody else's model, in the place of an nn.Embedding."""
import copy
import re

import pytest
import tokenizers
import torch
import torch.nn as nn

from codes import KroneckerEmbedding
from conftest import ROOT
from lib.tokenizer import HuggingFaceTokenizer, token_bytes

IDS = torch.tensor([[5, 99, 5], [400, 0, 7]])


@pytest.fixture
def rust(docs):
    """A byte-level tokenizer of Hugging Face, trained on real text, with an end of text."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(docs, vocab_size=600, special_tokens=["<|endoftext|>"])
    return tokenizers.Tokenizer.from_str(trained.to_str())


def test_it_is_made_from_a_tokenizer(bpe, rust):
    """Of each kind of tokenizer the true bytes; too few rows are refused."""
    module = KroneckerEmbedding.from_tokenizer(bpe, 24)
    assert (module.num_embeddings, module.embedding_dim) == (bpe.vocab_size, 24)
    assert torch.equal(module(IDS), KroneckerEmbedding(bpe.vocab_size, 24, token_bytes(bpe))(IDS))
    with pytest.raises(ValueError, match=f"600 embeddings for a tokenizer of {bpe.vocab_size} ids"):
        KroneckerEmbedding.from_tokenizer(bpe, 24, 600)
    of_rust = token_bytes(rust)
    assert of_rust == token_bytes(HuggingFaceTokenizer("x.json", rust.to_str()))
    assert b"".join(of_rust[i] for i in rust.encode("An état").ids) == "An état".encode()
    assert token_bytes(bpe.encoding) == token_bytes(bpe)  # tiktoken's
    with pytest.raises(TypeError, match="the bytes of a list's tokens are not known here"):
        KroneckerEmbedding.from_tokenizer([b"a"], 24)


def test_a_tokenizer_that_grows_is_read_again(rust):
    """An added token is zero until then; afterwards it has its own bytes and the others keep their
    vectors. Past the spare rows it is said how many there have to be."""
    module = KroneckerEmbedding.from_tokenizer(rust, 24, 604)
    before = module(torch.arange(600)).detach()
    rust.add_tokens([" zyzzyva", " qat"])
    added = torch.tensor([rust.token_to_id(" zyzzyva")])
    assert added == 600 and not module(added).any()
    assert module.set_tokenizer(rust) is module
    expected = KroneckerEmbedding(1, 24, [b" zyzzyva"])(torch.tensor([0]))
    assert torch.equal(module(added), expected)
    assert torch.equal(module(torch.arange(600)), before)
    rust.add_tokens([f" word{i}" for i in range(8)])
    with pytest.raises(ValueError, match="604 embeddings for a tokenizer of 610 ids"):
        module.set_tokenizer(rust)
    module.set_tokenizer(rust, 610)
    assert module.num_embeddings == 610 and module(torch.tensor([609])).any()


def test_it_has_no_row_per_token(bpe):
    """Tying a head to it or resizing it asks for .weight, which names the method instead."""
    with pytest.raises(AttributeError, match="no wte.weight .* call its set_tokenizer"):
        KroneckerEmbedding.from_tokenizer(bpe, 24).weight.size()


def test_ids_are_taken_as_by_an_embedding(bpe):
    """None give no vectors; those outside the vocabulary are refused, as -100, which marks what a
    loss leaves out."""
    for embedding in (nn.Embedding(bpe.vocab_size, 24), KroneckerEmbedding.from_tokenizer(bpe, 24)):
        assert embedding(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 24)
        for id in (-1, -100, 1 << 20):
            with pytest.raises(IndexError):
                embedding(torch.tensor([3, id]))


def test_it_survives_construction_without_memory(bpe):
    """Built on the meta device and filled from a checkpoint alone, it gives the same vectors;
    reset_parameters gives what the constructor gave."""
    module = KroneckerEmbedding.from_tokenizer(bpe, 24)
    with torch.device("meta"):
        other = KroneckerEmbedding.from_tokenizer(bpe, 24)
    other = other.to_empty(device="cpu")
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(IDS), module(IDS))
    nn.init.zeros_(other.W)
    other.reset_parameters()
    assert torch.equal(other(IDS), module(IDS))


# ---- transformers, where it is installed -------------------------------------------------------

@pytest.fixture
def example(rust, tmp_path):
    """The README's lines, run here with a tokenizer that needs no network."""
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "gpt2")
    readme = (ROOT / "README.md").read_text()
    code, = re.findall(r"```python\n(from transformers.*?)```", readme, re.S)
    config = f"GPT2Config(vocab_size={len(fast)}, n_layer=1, n_embd=24, n_head=2, "
    assert '"gpt2"' in code and "GPT2Config(" in code
    code = code.replace('"gpt2"', repr(str(tmp_path / "gpt2"))).replace("GPT2Config(", config)
    names = {}
    exec(code, names)
    return names, fast


def test_the_lines_of_the_readme_train_save_and_load_a_gpt2(example, tmp_path):
    """transformers' GPT-2 with the module in it learns a sentence; what it saved loads as itself,
    though it is built without memory first, and in bfloat16 too."""
    names, fast = example
    model = names["model"]
    ids = fast("Return the length of the sequence.", return_tensors="pt")["input_ids"]
    wte = model.get_input_embeddings()
    spelled = b"".join(bytes(wte.bytes[i, :wte.length[i]].tolist()) for i in ids[0])
    assert spelled == b"Return the length of the sequence."
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1 and losses[0] > 5
    model.save_pretrained(tmp_path / "saved")
    again, info = type(model).from_pretrained(tmp_path / "saved", output_loading_info=True)
    logits = model.eval()(ids).logits
    assert not any(info.values()) and torch.equal(again.eval()(ids).logits, logits)
    half = type(model).from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).eval()
    assert half(ids).logits.dtype == torch.bfloat16
    torch.testing.assert_close(half(ids).logits.float(), logits, rtol=0.1, atol=0.1)


def test_what_needs_a_row_per_token_is_refused(example):
    """A head tied to W would score rows that are no tokens; resizing says what to call."""
    names, _ = example
    with pytest.raises(AttributeError, match="set_tokenizer"):
        names["model"].resize_token_embeddings(600)
    config = names["model"].config
    config.tie_word_embeddings = True
    with pytest.raises(AttributeError, match="wte.weight"):
        names["KronGPT2"](config)


def test_trainer_saves_and_resumes(example, tmp_path):
    """Six steps of transformers' Trainer are the same whole and broken off after three."""
    names, fast = example
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments
    ids = fast("Return the length of the sequence.")["input_ids"]
    rows = [{"input_ids": ids[i:i + 4], "labels": ids[i:i + 4]} for i in range(4)]
    start = names["model"].state_dict()

    def train(folder, steps, **more):
        model = names["KronGPT2"](names["model"].config)
        if not more:  # what is resumed has its weights from the checkpoint alone
            model.load_state_dict(start)
        trainer = Trainer(model, TrainingArguments(
            str(tmp_path / folder), max_steps=steps, save_steps=3, report_to=[], use_cpu=True,
            lr_scheduler_type="constant", learning_rate=1e-2, disable_tqdm=True),
            train_dataset=rows)
        trainer.train(**more)
        return model.state_dict()

    whole = train("whole", 6)
    train("broken", 3)
    resumed = train("broken", 6, resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-3"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["transformer.wte.W"], start["transformer.wte.W"])


def test_peft_keeps_the_input_as_it_is(example, tmp_path):
    """LoRA on the attention trains and loads again; modules_to_save trains the lift W as well."""
    names, fast = example
    peft = pytest.importorskip("peft")
    ids = fast("Return the length of the sequence.", return_tensors="pt")["input_ids"]
    for more in ({}, {"modules_to_save": ["wte"]}):
        base = copy.deepcopy(names["model"])
        before = base.transformer.wte.W.detach().clone()
        lora = peft.LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM", **more)
        model = peft.get_peft_model(copy.deepcopy(base), lora)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(2):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
        wte = model.get_input_embeddings()
        wte = wte.modules_to_save["default"] if more else wte
        assert torch.equal(wte.W, before) == (not more)
        model.save_pretrained(tmp_path / f"lora{len(more)}")
        again = peft.PeftModel.from_pretrained(base, tmp_path / f"lora{len(more)}")
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
