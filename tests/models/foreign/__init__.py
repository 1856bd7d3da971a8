"""Tests of foreign weights: files are made here, in the formats of Caffe and PyTorch."""
