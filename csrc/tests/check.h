// What a test program expects, and how many times it was not so.
#pragma once

#include <cstdio>
#include <string>

static int n_failed = 0;
[[maybe_unused]] static std::string current; // model, test or case, for messages; empty: none

#define CHECK(x)                                                                                             \
    do {                                                                                                     \
        if (!(x)) {                                                                                          \
            printf("%s:%d: %s%s%s\n", __FILE__, __LINE__, current.c_str(), current.empty() ? "" : ": ", #x); \
            fflush(stdout); /* what follows may end the program */                                           \
            n_failed++;                                                                                      \
        }                                                                                                    \
    } while (0)
