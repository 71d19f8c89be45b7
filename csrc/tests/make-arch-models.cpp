// Writes one tiny GGUF with random weights for each architecture that upstream's own test can build:
//   make-arch-models -s SEED -o FOLDER/
// The program is upstream's; this adds only the loading of the CPU backend, which our builds keep in libraries of their own.

#define main llama_archs_main
#include "tests/test-llama-archs.cpp" // of the staged tree
#undef main

int main(int argc, char ** argv) {
    ggml_backend_load_all();
    return llama_archs_main(argc, argv);
}
