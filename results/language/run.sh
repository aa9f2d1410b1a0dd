#!/usr/bin/env bash
# Language models, reduced: results/language/run.sh NAME [OPTION …], such as llama --workers 2.  A second call goes on
# where the first one stopped; each run has one thread.  Sizes are such that a comparison takes at most about four
# core-hours of an AMD EPYC virtual machine: models of 0.5 million parameters and TOKENS_A_RUN tokens a run out of a corpus of
# about 12 million, where the papers' have a hundred million and billions.
