"""A student goes into TRL's trainers as any other model does."""

import warnings

import pytest
import torch
from datasets import Dataset
from tiny_reference import save_reference
from transformers import AutoTokenizer

from inheritune_hf import InheritedModelForCausalLM
from inheritune_hf.publishing import save_inherited


@pytest.mark.slow
def test_a_student_is_fine_tuned_by_trl(tmp_path):
    """SFTTrainer takes a saved student, trains it on chats by its template, and what it saves loads as it did."""
    pytest.importorskip("trl", reason="trl is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import SFTConfig, SFTTrainer

        save_inherited(save_reference(tmp_path / "reference"), 2, tmp_path / "student")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 8}]}] * 8
        args = SFTConfig(
            str(tmp_path / "tuned"), max_steps=2, max_length=32, report_to="none", use_cpu=True, bf16=False
        )
        student = InheritedModelForCausalLM.from_pretrained(tmp_path / "student")
        before = student.lm_head.weight.detach().clone()
        trainer = SFTTrainer(student, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
        trainer.save_model()
    tuned = InheritedModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert not torch.equal(tuned.lm_head.weight, before)
    assert tuned.config.inheritune["kept_layers"] == [0, 1]
