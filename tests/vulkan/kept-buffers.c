// Preloaded by lavapipe.py: buffers of Vulkan are never destroyed; only their memory is freed.
//
// Each descriptor set of ggml has 12 bindings, and a dispatch writes those that its shader has. Vulkan does not look at the
// others, whose buffers may be gone. Mesa 22.3 counts a reference to each of them: it writes into memory that something else
// has by then, and its process ends sooner or later, or computes something else.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <vulkan/vulkan.h>

static VKAPI_ATTR void VKAPI_CALL keep(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks * allocator) {
    (void) device, (void) buffer, (void) allocator;
}

// ggml looks up the functions of a device with this one, of which it asks the instance
PFN_vkVoidFunction vkGetDeviceProcAddr(VkDevice device, const char * name) {
    PFN_vkGetDeviceProcAddr next = (PFN_vkGetDeviceProcAddr) dlsym(RTLD_NEXT, "vkGetDeviceProcAddr");
    return strcmp(name, "vkDestroyBuffer") == 0 ? (PFN_vkVoidFunction) keep : next(device, name);
}

PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    PFN_vkGetInstanceProcAddr next = (PFN_vkGetInstanceProcAddr) dlsym(RTLD_NEXT, "vkGetInstanceProcAddr");
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) {
        return (PFN_vkVoidFunction) vkGetDeviceProcAddr;
    }
    return strcmp(name, "vkDestroyBuffer") == 0 ? (PFN_vkVoidFunction) keep : next(instance, name);
}
