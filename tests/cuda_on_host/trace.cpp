// The other half of `-fsanitize=thread`: the compiler calls a function at every memory access of a kernel, and instead of
// a race detector's, these are counted as a GPU's.
//
// An instruction is a place in the compiled code. Its k-th execution by each of a warp's threads, counted since all of
// them last met, is one request of the warp. A request to global memory costs the distinct sectors of 32 bytes that it
// touches; one to shared memory costs a cycle for each different word of 4 bytes that it wants from the same bank.
#include "trace.h"

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <vector>

#define TSAN extern "C" __attribute__((visibility("hidden")))
#define EXPORTED extern "C" __attribute__((visibility("default")))

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], _end[];  // of this library

namespace {

using cuda_on_host::trace::Memory;

constexpr int kLanes = 32, kBanks = 32, kWordBytes = 4;
constexpr uint64_t kSectorBytes = 32;

// An array argument: where it lies here, and where on a device, whose allocations begin at multiples of 512.
struct Array {
    uint64_t start, bytes, place;
};

// In sectors. `by_block`: the sum over the blocks of what each of them touches.
struct Traffic {
    uint64_t read, written, read_by_block, written_by_block;
};

struct Instruction {
    uint64_t address;
    uint32_t bytes;  // of one thread
    uint8_t write, shared;
    uint64_t requests, accesses, cost, least;
};

struct Request {
    uint32_t mask = 0;
    uint64_t place[kLanes];
};

struct Executions {
    uint32_t count[kLanes] = {};
    std::vector<Request> requests;
};

struct Warp {
    std::vector<Executions> of;  // by instruction
    std::vector<uint32_t> touched;
};

// The first access that is neither to an argument nor to shared memory.
struct Stray {
    uint64_t address, bytes, write;
};

bool running = false;
Warp* warp = nullptr;
int lane = 0;
Memory stack, dynamic_shared, of_runner;
std::vector<Memory> shared_variables;
std::vector<Array> arrays;
std::vector<Traffic> traffic;
std::vector<Instruction> instructions;
std::unordered_map<uint64_t, uint32_t> numbers;  // of instructions
std::vector<std::unique_ptr<Warp>> warps;
std::vector<uint32_t> touched_by[2];  // sector -> the last block that read or wrote it
uint32_t block = 0;
size_t recent = 0;  // array
Stray stray;

bool holds(Memory memory, uint64_t address) { return address - uint64_t(memory.start) < memory.bytes; }

const Array* array_at(uint64_t address) {
    if (recent < arrays.size() && address - arrays[recent].start < arrays[recent].bytes) return &arrays[recent];
    auto after = std::upper_bound(arrays.begin(), arrays.end(), address,
                                  [](uint64_t a, const Array& array) { return a < array.start; });
    if (after == arrays.begin()) return nullptr;
    recent = size_t(after - arrays.begin()) - 1;
    return address - arrays[recent].start < arrays[recent].bytes ? &arrays[recent] : nullptr;
}

uint32_t number_of(uint64_t address, uint32_t bytes, bool write, bool shared) {
    const uint64_t key = address * 2 + shared;
    const auto found = numbers.find(key);
    if (found != numbers.end()) return found->second;
    instructions.push_back({address - uint64_t(__ehdr_start), bytes, write, shared, 0, 0, 0, 0});
    return numbers[key] = uint32_t(instructions.size()) - 1;
}

// Where in shared memory an address lies; -1 for others. Every variable begins at the first bank.
int64_t shared_place(uint64_t address) {
    int64_t place = 0;
    for (const Memory& memory : shared_variables) {
        if (holds(memory, address)) return place + int64_t(address - uint64_t(memory.start));
        place += int64_t(memory.bytes + 127) / 128 * 128;
    }
    return holds(dynamic_shared, address) ? place + int64_t(address - uint64_t(dynamic_shared.start)) : -1;
}

void record(const void* pointer, uint32_t bytes, bool write, const void* caller) {
    const uint64_t address = uint64_t(pointer);
    if (!running || holds(stack, address)) return;
    uint64_t place;
    bool shared = false;
    if (const Array* array = array_at(address)) {
        if (address + bytes > array->start + array->bytes && !stray.address) stray = {address, bytes, write};
        place = array->place + (address - array->start);
    } else if (const int64_t in_shared = shared_place(address); in_shared >= 0) {
        shared = true;
        place = uint64_t(in_shared);
    } else {
        const bool of_library = address - uint64_t(__ehdr_start) < uint64_t(_end - __ehdr_start);
        if (!of_library && !holds(of_runner, address) && !stray.address) stray = {address, bytes, write};
        return;
    }
    const uint32_t number = number_of(uint64_t(caller), bytes, write, shared);
    if (warp->of.size() <= number) warp->of.resize(number + 1);
    Executions& executions = warp->of[number];
    const uint32_t k = executions.count[lane]++;
    if (executions.requests.size() <= k) {
        if (executions.requests.empty()) warp->touched.push_back(number);
        executions.requests.emplace_back();
    }
    Request& request = executions.requests[k];
    request.mask |= 1u << lane;
    request.place[lane] = place;
}

// ---- what a request costs

void touch(uint64_t sector, bool write) {
    uint32_t& last = touched_by[write][sector];
    if (last == block) return;
    const uint64_t place = sector * kSectorBytes;
    if (recent >= arrays.size() || place + kSectorBytes <= arrays[recent].place ||
        place >= arrays[recent].place + arrays[recent].bytes) {
        for (recent = 0; recent + 1 < arrays.size(); ++recent)
            if (place + kSectorBytes > arrays[recent].place && place < arrays[recent].place + arrays[recent].bytes) break;
    }
    Traffic& t = traffic[recent];
    if (!last) ++(write ? t.written : t.read);
    ++(write ? t.written_by_block : t.read_by_block);
    last = block;
}

void count_global(Instruction& instruction, uint64_t* places, int n) {
    std::sort(places, places + n);
    uint64_t sectors = 0, bytes = 0, end = 0, next_sector = 0;
    for (int i = 0; i < n; ++i) {
        const uint64_t from = std::max(places[i], end), to = places[i] + instruction.bytes;
        if (from >= to) continue;
        bytes += to - from;
        end = to;
        for (uint64_t s = std::max(from / kSectorBytes, next_sector); s * kSectorBytes < to; ++s) {
            ++sectors;
            touch(s, instruction.write);
            next_sector = s + 1;
        }
    }
    instruction.cost += sectors;
    instruction.least += (bytes + kSectorBytes - 1) / kSectorBytes;
}

// Accesses of 8 bytes are served to half a warp at a time, of 16 bytes to a quarter.
void count_shared(Instruction& instruction, const Request& request) {
    const int lanes = instruction.bytes <= 4 ? kLanes : instruction.bytes <= 8 ? kLanes / 2 : kLanes / 4;
    for (int first = 0; first < kLanes; first += lanes) {
        uint64_t words[kLanes * 4];
        int n = 0;
        for (int i = first; i < first + lanes; ++i) {
            if (!(request.mask >> i & 1)) continue;
            const uint64_t end = request.place[i] + std::min(instruction.bytes, 16u);
            for (uint64_t word = request.place[i] / kWordBytes; word * kWordBytes < end && n < kLanes * 4; ++word)
                words[n++] = word;
        }
        if (!n) continue;
        std::sort(words, words + n);
        n = int(std::unique(words, words + n) - words);
        uint64_t of_bank[kBanks] = {};
        for (int i = 0; i < n; ++i) ++of_bank[words[i] % kBanks];
        instruction.cost += *std::max_element(of_bank, of_bank + kBanks);
        ++instruction.least;
    }
}

void count_requests(Warp& of) {
    for (const uint32_t number : of.touched) {
        Instruction& instruction = instructions[number];
        Executions& executions = of.of[number];
        for (const Request& request : executions.requests) {
            ++instruction.requests;
            instruction.accesses += uint64_t(__builtin_popcount(request.mask));
            if (instruction.shared) {
                count_shared(instruction, request);
                continue;
            }
            uint64_t places[kLanes];
            int n = 0;
            for (int i = 0; i < kLanes; ++i)
                if (request.mask >> i & 1) places[n++] = request.place[i];
            count_global(instruction, places, n);
        }
        executions.requests.clear();
        std::fill(executions.count, executions.count + kLanes, 0u);
    }
    of.touched.clear();
}

}  // namespace

namespace cuda_on_host::trace {

void share(Memory variable) { shared_variables.push_back(variable); }

void begin_launch(int threads, Memory of_dynamic, Memory runner) {
    dynamic_shared = of_dynamic, of_runner = runner;
    warps.clear();
    for (int i = 0; i < threads; i += kLanes) warps.push_back(std::make_unique<Warp>());
    block = 0;
}

void begin_block() { ++block; }

void end_block() { threads_met(0, int(warps.size()) * kLanes); }

void resume(int thread, Memory of_thread) {
    warp = warps[size_t(thread / kLanes)].get();
    lane = thread % kLanes;
    stack = of_thread;
    running = true;
}

void pause() { running = false; }

void threads_met(int first, int count) {
    for (int i = first; i < first + count; i += kLanes) count_requests(*warps[size_t(i / kLanes)]);
}

void access(const void* p, size_t bytes, bool write) { record(p, uint32_t(bytes), write, __builtin_return_address(0)); }

}  // namespace cuda_on_host::trace

// ---- what Python calls

// `of` is sorted by address; their places lie below `bytes`.
EXPORTED void trace_start(const Array* of, size_t count, uint64_t bytes) {
    arrays.assign(of, of + count);
    traffic.assign(count, {});
    instructions.clear();
    numbers.clear();
    for (auto& sectors : touched_by) sectors.assign(bytes / kSectorBytes + 1, 0);
    recent = 0;
    stray = {};
}

EXPORTED size_t trace_instructions(const Instruction** result) {
    *result = instructions.data();
    return instructions.size();
}

EXPORTED void trace_traffic(Traffic* result) { std::copy(traffic.begin(), traffic.end(), result); }

EXPORTED void trace_stray(Stray* result) { *result = stray; }

// ---- what the compiler calls

#define CALLER __builtin_return_address(0)
#define ACCESS(bytes)                                                                        \
    TSAN void __tsan_read##bytes(void* p) { record(p, bytes, false, CALLER); }               \
    TSAN void __tsan_write##bytes(void* p) { record(p, bytes, true, CALLER); }               \
    TSAN void __tsan_unaligned_read##bytes(void* p) { record(p, bytes, false, CALLER); }     \
    TSAN void __tsan_unaligned_write##bytes(void* p) { record(p, bytes, true, CALLER); }     \
    TSAN void __tsan_volatile_read##bytes(void* p) { record(p, bytes, false, CALLER); }      \
    TSAN void __tsan_volatile_write##bytes(void* p) { record(p, bytes, true, CALLER); }      \
    TSAN void __tsan_unaligned_volatile_read##bytes(void* p) { record(p, bytes, false, CALLER); } \
    TSAN void __tsan_unaligned_volatile_write##bytes(void* p) { record(p, bytes, true, CALLER); }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

TSAN void __tsan_read_range(void* p, size_t bytes) { record(p, uint32_t(bytes), false, CALLER); }
TSAN void __tsan_write_range(void* p, size_t bytes) { record(p, uint32_t(bytes), true, CALLER); }
TSAN void __tsan_vptr_update(void*, void*) {}
TSAN void __tsan_vptr_read(void*) {}
TSAN void __tsan_func_entry(void*) {}
TSAN void __tsan_func_exit() {}
TSAN void __tsan_init() {}
