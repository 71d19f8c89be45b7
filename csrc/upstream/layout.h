// Layers that a file describes and llama.cpp would end the process for, when it makes a context or computes a graph.
#pragma once

#include <string>

struct llama_model;

// "" or why
std::string llama_snapkv_check_layout(const llama_model & model);
