// Variables of the environment, as tests set them for libllama in the same process.

#pragma once

#include <cstdlib>

// value: nullptr takes the variable away
static void set_variable(const char * name, const char * value) {
#ifdef _WIN32
    _putenv_s(name, value ? value : "");
#else
    if (value) {
        setenv(name, value, 1);
    } else {
        unsetenv(name);
    }
#endif
}
