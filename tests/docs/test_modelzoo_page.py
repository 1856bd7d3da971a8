"""The page for those who come from the model zoo names all that they type."""

from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "modelzoo.md").read_text(encoding="utf-8")
SCRIPTS = """run_standardalone_train.sh run_standardalone_train_gpu.sh run_distribute_train.sh
run_distribute_train_gpu.sh run_eval.sh run_eval_gpu.sh run_infer_310.sh train.py eval.py export.py
postprocess.py"""
ARGUMENTS = """--using_mode --run_online --data_url --train_url --pre_trained_url --run_platform
--only_create_dataset --distribute --device_id --device_num --lr --mode --dataset --epoch_size
--batch_size --pre_trained --pre_trained_epoch_size --save_checkpoint_epochs --loss_scale
--filter_weight --freeze_layer --debug --check_point --checkpoint_path --ckpt_file --file_name
--file_format --device_target"""
PARAMETERS = """device_num class_num image_shape mindrecord_dir coco_root voc_root image_dir
anno_path RANK_TABLE_FILE PRE_TRAINED PRE_TRAINED_EPOCH_SIZE use_float16 use_global_norm"""


@pytest.mark.parametrize("name", f"{SCRIPTS} {ARGUMENTS} {PARAMETERS}".split())
def test_it_is_on_the_page(name):
    """Sources: the zoo's README, and the parsers of its three scripts."""
    assert name in PAGE
