// cuda_on_cpu.h: run the text of a CUDA C kernel on the CPU, thread by thread.
//
// The .cu file is compiled as C++ behind this header, unchanged but for the one line that declares
// dynamic shared memory (build.py says how). The header supplies what CUDA C has and C++ has not:
//
//   1  vector types               float4, double2, dim3, ...
//   2  where am I?                threadIdx, blockIdx, blockDim, gridDim
//   3  shared memory              __shared__, and what it holds before anybody writes to it
//   4  fibers                     a stack for every CUDA thread, and the switch between two of them
//   5  the scheduler              which CUDA thread runs next
//   6  waiting                    __syncthreads, __syncwarp, warp shuffles and votes
//   7  atomics
//   8  the launch                 from a list of argument addresses to a typed C++ call
//   9  words of the language      __global__, __device__, intrinsics, maths
//
// How it runs: ONE operating-system thread executes the blocks of the grid one after another, and
// within a block one CUDA thread at a time, until that thread finishes or waits. Nothing runs in
// parallel, so a schedule is exactly reproducible, and that is the point. On a GPU a forgotten
// barrier is wrong on some days; here, thread 0 runs all the way to the next barrier before
// thread 1 starts, so it reads what nobody has written yet (NaN), every time.
//
// Compiled with -fsanitize=thread, every CUDA thread becomes a thread in the sanitizer's eyes and
// the barriers become its only ordering: a missing one is then REPORTED as a data race, with both
// lines. -fsanitize=address,undefined works too: every shared array has red zones of its own.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <type_traits>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(EMU_PORTABLE) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_PORTABLE 1  // no hand-written switch for this processor: use ucontext
#endif
#if defined(EMU_PORTABLE)
#include <ucontext.h>
#endif

// The emulator's own functions are neither watched by the sanitizers (they would report the
// scheduler's bookkeeping instead of the kernel's mistakes) nor inlined into kernels.
#define EMU_OWN __attribute__((no_sanitize("address", "undefined", "thread"), noinline))

// ------------------------------------------------------------------------- 1  vector types
// The alignment is CUDA's. It matters: a float4 is read by one 16-byte instruction, which faults
// on a GPU when the address is no multiple of 16.
#define EMU_VECTORS(T, name, align2, align4)                                                 \
  struct name##1 { T x; };                                                                   \
  struct alignas(align2) name##2 { T x, y; };                                                \
  struct name##3 { T x, y, z; };                                                             \
  struct alignas(align4) name##4 { T x, y, z, w; };                                          \
  static inline name##1 make_##name##1(T x) { return {x}; }                                  \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                          \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                  \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
#undef EMU_VECTORS

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// ------------------------------------------------------------------------- 2  where am I?
namespace emu {
constexpr unsigned MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP;
enum State { READY, RUNNING, AT_BARRIER, AT_WARP, LEFT };
struct Fiber;

struct Thread {        // one CUDA thread of the block that is being run
  uint3 index;         // its threadIdx
  uint3 block;         // its blockIdx
  unsigned id;         // threadIdx as one number: x + blockDim.x * (y + blockDim.y * z)
  State state;
  int line;            // where it waits: the line in the .cu file
  unsigned exchanges;  // warp operations so far: which of the two exchange buffers is next
  Fiber* fiber;        // the stack that it lives on; none before it starts
};
static Thread* volatile current;  // the thread that is running now
}  // namespace emu

static dim3 blockDim, gridDim;
static constexpr int warpSize = emu::WARP;
#if defined(__SANITIZE_THREAD__)
// Plain variables would look like data shared by all threads, and each use of them like a race.
namespace emu { EMU_OWN static Thread* self() { return current; } }
#define threadIdx (emu::self()->index)
#define blockIdx (emu::self()->block)
#else
// Plain variables, rewritten at every switch: the compiler sees through them, and in gdb
// `break f if threadIdx.x == 3` and `print blockIdx` simply work.
static uint3 threadIdx, blockIdx;
#endif

// ------------------------------------------------------------------------- 3  shared memory
// A block's shared memory is what `static` means in C: one copy that outlives the function. One
// block runs at a time, so one copy is enough. All of it goes into one section of the library,
// which can then be filled with 0xFF before each block: as float, double or half that is NaN.
#define __shared__ static __attribute__((section("emu_shared")))
extern "C" {
extern char __start_emu_shared[] __attribute__((weak, visibility("hidden")));  // the linker's
extern char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
}
namespace emu {
constexpr size_t MAX_DYNAMIC_SHARED = 227 * 1024;  // the most that any architecture so far allows
alignas(1024) static char dynamic_shared[MAX_DYNAMIC_SHARED];  // `extern __shared__ T name[]`

EMU_OWN static void fill_with_nan(char* begin, char* end) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  // Not memset: the sanitizers watch that one too. Red zones may be overwritten, they are padding.
  for (volatile char* p = begin; p < end; ++p) *p = (char)0xFF;
#else
  if (begin < end) memset(begin, 0xFF, (size_t)(end - begin));
#endif
}

#if defined(__SANITIZE_THREAD__)
// The next block reuses these bytes, which is no race: it owns other memory on a GPU. Mapping fresh
// pages in place makes the sanitizer forget what the last block did there; the contents are kept,
// because the first and the last page also hold other variables.
EMU_OWN static void forget_accesses(char* begin, char* end) {
  if (begin >= end) return;
  char* page = (char*)((uintptr_t)begin & ~(uintptr_t)4095);
  const size_t bytes = (((uintptr_t)end + 4095) & ~(uintptr_t)4095) - (uintptr_t)page;
  char* copy = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < bytes; ++i) ((volatile char*)copy)[i] = page[i];
  mmap(page, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  for (size_t i = 0; i < bytes; ++i) ((volatile char*)page)[i] = copy[i];
  munmap(copy, bytes);
}
#endif

// ------------------------------------------------------------------------- 4  fibers
// A fiber is a stack and the place where its execution stopped. A CUDA thread that waits leaves
// its registers and local variables there, and the CPU goes on with another one.
struct Fiber {
  void* stack_pointer = nullptr;  // where the switch left it
  char* stack = nullptr;
  size_t stack_size = 0;
  Fiber* next_free = nullptr;
  void* asan_stack = nullptr;  // the address sanitizer's shadow of the stack
  void* tsan = nullptr;        // this fiber as a thread, to the thread sanitizer
#if defined(EMU_PORTABLE)
  ucontext_t context;
#endif
};
constexpr size_t STACK = 256 * 1024;  // pages that nobody touches cost nothing
#if defined(__SANITIZE_THREAD__)
constexpr unsigned FIBERS = 2 * MAX_THREADS;
#else
constexpr unsigned FIBERS = MAX_THREADS;
#endif
// The stacks belong to the process, not to this library: one launch runs at a time, so the
// libraries of all kernels can use the same ones. build.py gives every library these two tables.
static void** stacks = nullptr;        // [2048]
static void** tsan_threads = nullptr;  // [2048] what the thread sanitizer keeps for a thread: 1 MB

#if !defined(EMU_PORTABLE)
// emu_switch(save, load): push the registers that a function call must preserve, swap stack
// pointers, pop the other fiber's, return into the other fiber. A dozen instructions. (ucontext
// does the same plus two system calls for the signal mask, and is about ten times slower.)
extern "C" void emu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
#else
asm(R"(
.text
.hidden emu_switch
.type emu_switch,%function
emu_switch:
  sub sp, sp, #176
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #176
  ret
.size emu_switch,.-emu_switch
)");
#endif
#endif

EMU_OWN static void switch_fiber(Fiber* from, Fiber* to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->asan_stack, to->stack, to->stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);  // a switch orders nothing
#endif
#if defined(EMU_PORTABLE)
  swapcontext(&from->context, &to->context);
#else
  emu_switch(&from->stack_pointer, to->stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from->asan_stack, nullptr, nullptr);
#endif
}

static void fiber_main();

// Make a fiber ready to start in fiber_main(). Done anew in every launch, also because the last one
// may have been another library's, or may have ended with threads that wait for ever.
EMU_OWN static void prepare_fiber(Fiber* f, unsigned number) {
  if (!stacks[number]) {
    char* memory = (char*)mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) { perror("CUDA emulator: no memory for a thread's stack"); abort(); }
    mprotect(memory, 4096, PROT_NONE);  // a kernel that overflows its stack faults, at once
    stacks[number] = memory + 4096;
  }
  f->stack = (char*)stacks[number];
  f->stack_size = STACK;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK);
  f->asan_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  if (!tsan_threads[number]) tsan_threads[number] = __tsan_create_fiber(0);
  f->tsan = tsan_threads[number];
#endif
  // Stacks that all start at the same offset of a page would compete for a few lines of the cache.
  const size_t colour = number % 61 * 192;
  char* top = (char*)((uintptr_t)(f->stack + STACK) & ~(uintptr_t)15) - colour;
#if defined(EMU_PORTABLE)
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = (size_t)(top - f->stack);
  f->context.uc_link = nullptr;
  makecontext(&f->context, fiber_main, 0);
#elif defined(__x86_64__)
  void** sp = (void**)top;
  *--sp = nullptr;              // the return address of fiber_main, which never returns
  *--sp = (void*)&fiber_main;   // where the first switch "returns" to
  for (int i = 0; i < 6; ++i) *--sp = nullptr;  // the six registers; rbp = 0 ends a backtrace
  f->stack_pointer = sp;
#else
  void** sp = (void**)(top - 176);
  memset(sp, 0, 176);
  sp[11] = (void*)&fiber_main;  // x30, the link register
  f->stack_pointer = sp;
#endif
}

// ------------------------------------------------------------------------- 5  the scheduler
// `queue` holds the threads of the block that can run. A thread that waits takes the next one from
// the queue and switches to it directly. When the queue is empty, run_block() checks: has every
// thread reached the same barrier? Then all may go on. Otherwise the block is stuck, for ever, and
// on a GPU it would hang (or go on with wrong numbers); here that is an error with a line number.
struct Warp { unsigned size, waiting; };

struct Machine {
  Thread threads[MAX_THREADS];
  unsigned order[MAX_THREADS];    // in which order the threads take their turns
  Thread* queue[MAX_THREADS];     // a ring: a thread is in it at most once
  unsigned head, queued;
  unsigned count, left, at_barrier;  // threads of the block; gone; waiting at __syncthreads
  Warp warps[MAX_WARPS];
  uint64_t exchange[2][MAX_THREADS];  // the values of a warp shuffle
  Fiber main;                     // the stack of whoever launched the kernel
  Fiber fibers[FIBERS];
  unsigned prepared;              // of the fibers, in this launch
  Fiber* free_fibers;             // those that no thread is on any more
  void (*body)(void**);           // the kernel, called with the addresses of its arguments
  void** arguments;
  bool reverse, shuffled;
  uint64_t random;
  unsigned phase;                 // barriers passed by this block
  char error[512];
  const char* kernel;
#if defined(__SANITIZE_THREAD__)
  unsigned set;                   // which set of fibers this block uses
  char start, finish;             // addresses that stand for "happens before" to the sanitizer
  char barrier[FIBERS][2], warp_barrier[FIBERS][MAX_WARPS][2];
#endif
};
static Machine m;

EMU_OWN static uint64_t random_below(uint64_t n) {  // xorshift64: enough for a shuffle
  m.random ^= m.random << 13;
  m.random ^= m.random >> 7;
  m.random ^= m.random << 17;
  return m.random % n;
}
EMU_OWN static void shuffle(unsigned* a, unsigned n) {
  for (unsigned i = n; i > 1; --i) {
    const unsigned j = (unsigned)random_below(i), t = a[i - 1];
    a[i - 1] = a[j];
    a[j] = t;
  }
}
EMU_OWN static void enqueue(Thread* t) {
  t->state = READY;
  m.queue[(m.head + m.queued++) % MAX_THREADS] = t;
}
EMU_OWN static Thread* dequeue() {
  if (!m.queued) return nullptr;
  Thread* t = m.queue[m.head];
  m.head = (m.head + 1) % MAX_THREADS;
  --m.queued;
  return t;
}
EMU_OWN static Fiber* fiber_for(Thread* t) {
#if defined(__SANITIZE_THREAD__)
  // To the sanitizer a fiber is a thread, and what one fiber does is in order. So every thread of
  // the block has its own, and blocks take turns between five sets of them (fewer, if they are
  // large): a race between two blocks is seen unless both happen to use the same set.
  return &m.fibers[m.set * m.count + t->id];
#else
  (void)t;
  Fiber* f = m.free_fibers;
  if (f) {
    m.free_fibers = f->next_free;
  } else {
    f = &m.fibers[m.prepared];
    prepare_fiber(f, m.prepared++);
  }
  return f;
#endif
}
EMU_OWN static void make_current(Thread* t) {
  t->state = RUNNING;
  current = t;
#if !defined(__SANITIZE_THREAD__)
  ::threadIdx = t->index;
  ::blockIdx = t->block;
#endif
}
// Leave the fiber `from` for the next thread in the queue, or for run_block() if there is none.
EMU_OWN static void give_way(Fiber* from, Thread* next) {
  if (!next) {
    switch_fiber(from, &m.main);
    return;
  }
  if (!next->fiber) next->fiber = fiber_for(next);
  make_current(next);
  switch_fiber(from, next->fiber);
}
// What every fiber runs. A thread that finishes without having waited leaves a clean stack, and
// the next one starts on it by a plain call: a kernel with no barrier never switches at all.
EMU_OWN static void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    Fiber* fiber = current->fiber;
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&m.start);
#endif
    m.body(m.arguments);
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&m.finish);
#endif
    current->state = LEFT;
    current->fiber = nullptr;
    ++m.left;
    Thread* next = dequeue();
#if !defined(__SANITIZE_THREAD__)
    if (next && !next->fiber) {
      next->fiber = fiber;
      make_current(next);
      continue;
    }
    fiber->next_free = m.free_fibers;
    m.free_fibers = fiber;
#endif
    give_way(fiber, next);
  }
}

// One sentence about a block that cannot go on: who waits where, and where the others are.
EMU_OWN static int report_divergence() {
#if defined(__SANITIZE_THREAD__)
  for (unsigned i = 0; i < FIBERS; ++i) tsan_threads[i] = nullptr;  // they are within the kernel
#endif
  if (m.error[0]) return 1;  // a thread has said why it stopped
  Thread *waits = nullptr, *other = nullptr;
  for (unsigned i = 0; i < m.count; ++i) {  // a warp operation that waits is the narrower problem
    Thread* t = &m.threads[i];
    if (t->state == AT_WARP || (t->state == AT_BARRIER && !waits)) waits = t;
    if (t->state == AT_WARP) break;
  }
  const bool warp = waits->state == AT_WARP;
  unsigned here = 0, left = 0, elsewhere = 0, total = 0;
  for (unsigned i = 0; i < m.count; ++i) {
    Thread* t = &m.threads[i];
    if (warp && t->id / WARP != waits->id / WARP) continue;
    ++total;
    if (t->state == LEFT) ++left;
    else if (t->state == waits->state && t->line == waits->line) ++here;
    else { ++elsewhere; other = t; }
  }
  int n = snprintf(m.error, sizeof m.error,
                   "%s: divergent %s in block (%u,%u,%u): thread (%u,%u,%u) waits at line %d with %u of "
                   "%u threads of the %s, %u have left the kernel",
                   m.kernel, warp ? "warp operation" : "__syncthreads", waits->block.x, waits->block.y,
                   waits->block.z, waits->index.x, waits->index.y, waits->index.z, waits->line, here,
                   total, warp ? "warp" : "block", left);
  if (other)
    snprintf(m.error + n, sizeof m.error - (size_t)n,
             ", %u wait elsewhere: thread (%u,%u,%u) at line %d", elsewhere, other->index.x,
             other->index.y, other->index.z, other->line);
  return 1;
}

EMU_OWN static int run_block(uint3 block) {
  m.left = m.at_barrier = m.phase = m.head = m.queued = 0;
  for (Warp& w : m.warps) w = {0, 0};
  for (unsigned id = 0; id < m.count; ++id) {
    Thread& t = m.threads[id];
    t.block = block;
    t.exchanges = 0;
    t.fiber = nullptr;
    ++m.warps[id / WARP].size;
  }
  for (;;) {
    if (m.shuffled) shuffle(m.order, m.count);
    for (unsigned i = 0; i < m.count; ++i) enqueue(&m.threads[m.order[i]]);
    m.at_barrier = 0;
    give_way(&m.main, dequeue());  // comes back when nobody can run
    if (m.left == m.count) return 0;
    bool together = m.at_barrier == m.count;
    for (unsigned i = 1; together && i < m.count; ++i)
      together = m.threads[i].line == m.threads[0].line;
    if (!together) return report_divergence();
    ++m.phase;
  }
}

EMU_OWN static int run_grid(const char* kernel, void (*body)(void**), void** arguments,
                            const unsigned* geometry, size_t dynamic_bytes, long order) {
  ::gridDim = dim3(geometry[0], geometry[1], geometry[2]);
  ::blockDim = dim3(geometry[3], geometry[4], geometry[5]);
  m.kernel = kernel;
  m.body = body;
  m.arguments = arguments;
  m.count = blockDim.x * blockDim.y * blockDim.z;
  m.reverse = order == 1;
  m.shuffled = order >= 2;
  m.random = 0x9E3779B97F4A7C15ull * (uint64_t)(order + 1) | 1;
  m.error[0] = 0;
  m.prepared = 0;
  m.free_fibers = nullptr;
  const uint64_t blocks = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
  for (unsigned id = 0; id < m.count; ++id) {
    m.threads[id].id = id;
    m.threads[id].index = {id % blockDim.x, id / blockDim.x % blockDim.y, id / blockDim.x / blockDim.y};
    m.order[id] = m.reverse ? m.count - 1 - id : id;
  }
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* stack;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &m.main.stack_size);
  pthread_attr_destroy(&attributes);
  m.main.stack = (char*)stack;
  ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, MAX_DYNAMIC_SHARED);
  ASAN_POISON_MEMORY_REGION(dynamic_shared + dynamic_bytes, MAX_DYNAMIC_SHARED - dynamic_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  m.main.tsan = __tsan_get_current_fiber();
  unsigned sets = FIBERS / m.count < 5 ? FIBERS / m.count : 5;  // they cost time
  if (sets > blocks) sets = (unsigned)blocks;
  // All made here, by the host: a new thread inherits what its maker knew, so threads that made one
  // another would look as if they had waited for one another.
  for (unsigned i = 0; i < sets * m.count; ++i) prepare_fiber(&m.fibers[i], i);
#endif
  // With a seed the blocks come in a shuffled order too: i -> (a i + b) mod blocks, a coprime.
  uint64_t a = 1, b = 0;
  if (m.shuffled && blocks > 1) {
    b = random_below(blocks);
    uint64_t p, q;
    do {
      a = 1 + random_below(blocks - 1);
      for (p = a, q = blocks; q;) { const uint64_t r = p % q; p = q; q = r; }
    } while (p != 1);
  }
  int failed = 0;
  for (uint64_t i = 0; i < blocks && !failed; ++i) {
    const uint64_t n = m.reverse ? blocks - 1 - i : (uint64_t)(((unsigned __int128)a * i + b) % blocks);
    const uint3 block = {(unsigned)(n % gridDim.x), (unsigned)(n / gridDim.x % gridDim.y),
                         (unsigned)(n / gridDim.x / gridDim.y)};
#if defined(__SANITIZE_THREAD__)
    forget_accesses(__start_emu_shared, __stop_emu_shared);
    forget_accesses(dynamic_shared, dynamic_shared + dynamic_bytes);
    m.set = (unsigned)(i % sets);
#endif
    fill_with_nan(__start_emu_shared, __stop_emu_shared);
    fill_with_nan(dynamic_shared, dynamic_shared + dynamic_bytes);
#if defined(__SANITIZE_THREAD__)
    __tsan_release(&m.start);  // what the host did so far is visible to the block's threads
#endif
    failed = run_block(block);
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&m.finish);  // only now: a block must not inherit what an earlier block knew
#endif
  current = nullptr;
  return failed;
}

// ------------------------------------------------------------------------- 6  waiting
EMU_OWN static void wait_for_block(int line) {
  Thread* t = current;
  t->state = AT_BARRIER;
  t->line = line;
  ++m.at_barrier;
#if defined(__SANITIZE_THREAD__)
  char* const meeting = &m.barrier[m.set][m.phase & 1];
  __tsan_release(meeting);
#endif
  give_way(t->fiber, dequeue());
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(meeting);
#endif
}

// The lanes of a warp meet. They need not arrive one after another (this is how GPUs since Volta
// work, too): the last one to come puts them all back into the queue.
EMU_OWN static void wait_for_warp(int line) {
  Thread* t = current;
  const unsigned first = t->id & ~(WARP - 1);
  Warp& w = m.warps[t->id / WARP];
  t->state = AT_WARP;
  t->line = line;
#if defined(__SANITIZE_THREAD__)
  char* const meeting = &m.warp_barrier[m.set][t->id / WARP][t->exchanges & 1];
  __tsan_release(meeting);
#endif
  ++t->exchanges;
  if (++w.waiting == w.size) {
    bool together = true;
    unsigned lanes[WARP];
    for (unsigned i = 0; i < w.size; ++i) {
      lanes[i] = first + (m.reverse ? w.size - 1 - i : i);
      together &= m.threads[first + i].line == line;
    }
    if (together) {  // if not, nobody is put back, and run_block() will report it
      w.waiting = 0;
      if (m.shuffled) shuffle(lanes, w.size);
      for (unsigned i = 0; i < w.size; ++i) enqueue(&m.threads[lanes[i]]);
    }
  }
  Thread* next = dequeue();
  if (next == t) make_current(t);
  else give_way(t->fiber, next);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(meeting);
#endif
}
// Only whole warps: a partial mask is legal CUDA, but no kernel for learners needs it.
EMU_OWN static void want_full_mask(unsigned mask, int line) {
  if (mask == 0xffffffffu) return;
  snprintf(m.error, sizeof m.error,
           "%s: warp operation with the mask 0x%08x at line %d: the emulator knows 0xffffffff only",
           m.kernel, mask, line);
  current->state = AT_WARP;  // for ever, so that the block is stuck, and the message is reported
  current->line = line;
  give_way(current->fiber, dequeue());
  abort();  // not reached
}
// Every lane writes its value, all meet, every lane reads another's. Two buffers in turn make one
// meeting enough: before anybody writes to a buffer again, all have met once more, having read it.
EMU_OWN static uint64_t exchange_bits(uint64_t bits, unsigned source, int line) {
  Thread* t = current;
  uint64_t* buffer = m.exchange[t->exchanges & 1];
  buffer[t->id] = bits;
  wait_for_warp(line);
  source += t->id & ~(WARP - 1);
  return source < m.count ? buffer[source] : ~(uint64_t)0;  // a lane that does not exist: NaN
}
EMU_OWN static unsigned lane() { return current->id & (WARP - 1); }
template <class T> static inline T exchange(unsigned mask, T value, unsigned source, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle moves values of at most 8 bytes");
  want_full_mask(mask, line);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = exchange_bits(bits, source, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
// Which lane to read from. A warp can be cut into segments of `width` lanes.
static inline unsigned from_lane(int i, int width = WARP) {
  return (lane() & ~(unsigned)(width - 1)) + ((unsigned)i & (unsigned)(width - 1));
}
static inline unsigned from_above(unsigned d, int width = WARP) {  // lane + d: __shfl_down
  return (lane() & (unsigned)(width - 1)) + d < (unsigned)width ? lane() + d : lane();
}
static inline unsigned from_below(unsigned d, int width = WARP) {  // lane - d: __shfl_up
  return (lane() & (unsigned)(width - 1)) >= d ? lane() - d : lane();
}
static inline unsigned from_xor(int mask, int width = WARP) {
  const unsigned source = lane() ^ (unsigned)mask;
  return source < (lane() & ~(unsigned)(width - 1)) + (unsigned)width ? source : lane();
}
static inline unsigned ballot(unsigned mask, bool mine, int line) {
  unsigned votes = 0;
  want_full_mask(mask, line);
  const uint64_t* buffer = m.exchange[current->exchanges & 1];
  exchange_bits(mine, 0, line);
  const unsigned first = current->id & ~(WARP - 1);
  for (unsigned i = 0; i < m.warps[first / WARP].size; ++i)
    votes |= (unsigned)(buffer[first + i] != 0) << i;
  return votes;
}
template <int line> static inline void sync_warp(unsigned mask = 0xffffffffu) {
  want_full_mask(mask, line);
  wait_for_warp(line);
}
}  // namespace emu

// Macros, so that __LINE__ is the line in the kernel.
#define __syncthreads() emu::wait_for_block(__LINE__)
#define __syncwarp(...) emu::sync_warp<__LINE__>(__VA_ARGS__)
#define __shfl_sync(mask, value, ...) emu::exchange(mask, value, emu::from_lane(__VA_ARGS__), __LINE__)
#define __shfl_up_sync(mask, value, ...) emu::exchange(mask, value, emu::from_below(__VA_ARGS__), __LINE__)
#define __shfl_down_sync(mask, value, ...) emu::exchange(mask, value, emu::from_above(__VA_ARGS__), __LINE__)
#define __shfl_xor_sync(mask, value, ...) emu::exchange(mask, value, emu::from_xor(__VA_ARGS__), __LINE__)
#define __ballot_sync(mask, value) emu::ballot(mask, (value) != 0, __LINE__)
#define __any_sync(mask, value) (emu::ballot(mask, (value) != 0, __LINE__) != 0)
#define __all_sync(mask, value) (emu::ballot(mask, (value) == 0, __LINE__) == 0)

// ------------------------------------------------------------------------- 7  atomics
namespace emu {
template <class T> using Same = std::common_type_t<T>;  // a parameter that takes no part in deduction
template <class T, class... U> constexpr bool one_of = (std::is_same_v<T, U> || ...);
template <class T> constexpr bool atomic_integer = one_of<T, int, unsigned, unsigned long long>;

template <class T, class F> static inline T update(T* p, F change) {
#if defined(__SANITIZE_THREAD__)
  // A true atomic operation, or it would be reported as the race that it is there to avoid.
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits old = __atomic_load_n((Bits*)p, __ATOMIC_RELAXED), wanted;
  T before, after;
  do {
    memcpy(&before, &old, sizeof old);
    after = change(before);
    memcpy(&wanted, &after, sizeof after);
  } while (!__atomic_compare_exchange_n((Bits*)p, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
#else
  const T before = *p;  // nothing else runs meanwhile
  *p = change(before);
  return before;
#endif
}
}  // namespace emu
#define EMU_ATOMIC(name, allowed, result)                                                     \
  template <class T> static inline T name(T* p, emu::Same<T> value) {                         \
    static_assert(allowed, #name ": CUDA has no such operation on this type");                \
    return emu::update(p, [value](T old) -> T { (void)old; return result; });                 \
  }
EMU_ATOMIC(atomicAdd, (emu::atomic_integer<T> || emu::one_of<T, float, double>), old + value)
EMU_ATOMIC(atomicSub, (emu::one_of<T, int, unsigned>), old - value)
EMU_ATOMIC(atomicMax, (emu::atomic_integer<T> || emu::one_of<T, long long>), old > value ? old : value)
EMU_ATOMIC(atomicMin, (emu::atomic_integer<T> || emu::one_of<T, long long>), old < value ? old : value)
EMU_ATOMIC(atomicExch, (emu::atomic_integer<T> || emu::one_of<T, float>), value)
EMU_ATOMIC(atomicAnd, emu::atomic_integer<T>, old & value)
EMU_ATOMIC(atomicOr, emu::atomic_integer<T>, old | value)
EMU_ATOMIC(atomicXor, emu::atomic_integer<T>, old ^ value)
#undef EMU_ATOMIC
template <class T> static inline T atomicCAS(T* p, emu::Same<T> compare, emu::Same<T> value) {
  static_assert(emu::atomic_integer<T>, "atomicCAS: CUDA has no such operation on this type");
  return emu::update(p, [=](T old) -> T { return old == compare ? value : old; });
}

// ------------------------------------------------------------------------- 8  the launch
namespace emu {
// The kernel's parameters in a few letters, for the checks in Python: "pcf4" is const float*,
// "pf8" double*, "i4" int, "u8" unsigned long long.
template <class T> void describe(char*& out) {
  if constexpr (std::is_pointer_v<T>) {
    using U = std::remove_pointer_t<T>;
    *out++ = 'p';
    if (std::is_const_v<U>) *out++ = 'c';
    describe<std::remove_cv_t<U>>(out);
  } else if constexpr (std::is_void_v<T>) {
    *out++ = 'v';
  } else {
    const char kind = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b'
                    : std::is_unsigned_v<T> ? 'u' : std::is_integral_v<T> ? 'i' : 's';
    out += sprintf(out, "%c%zu", kind, sizeof(T));
  }
}
template <class... A> const char* signature(void (*)(A...)) {
  static char text[16 * sizeof...(A) + 1];
  char* out = text;
  ((describe<std::remove_cv_t<A>>(out), *out++ = ' '), ...);
  *out = 0;
  return text;
}
template <auto F, class... A, size_t... I>
inline __attribute__((always_inline)) void call(void (*)(A...), void** a, std::index_sequence<I...>) {
  (void)a;
  F(*(std::remove_cv_t<A>*)a[I]...);
}
template <auto F, class... A> constexpr auto indices(void (*)(A...)) { return std::index_sequence_for<A...>{}; }
template <auto F> void body(void** a) { call<F>(F, a, indices<F>(F)); }

struct Kernel {
  const char* name;
  const char* signature;
  int max_threads;  // __launch_bounds__, or 1024
  void (*body)(void**);
};
constexpr int bounds(int threads = (int)MAX_THREADS, int = 0, int = 0) { return threads; }
}  // namespace emu

#define EMU_API extern "C" __attribute__((visibility("default")))
EMU_API int emu_launch(const emu::Kernel* kernel, const unsigned* geometry, size_t dynamic_bytes,
                       void** arguments, long order) {
  return emu::run_grid(kernel->name, kernel->body, arguments, geometry, dynamic_bytes, order);
}
EMU_API const char* emu_error() { return emu::m.error; }
EMU_API void emu_share(void** stacks, void** tsan_threads) {
  emu::stacks = stacks;
  emu::tsan_threads = tsan_threads;
}

// ------------------------------------------------------------------------- 9  words of the language
#define __CUDA_ON_CPU__ 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#undef __restrict__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __threadfence() ((void)0)        // memory is in order here: what they are for cannot be tested
#define __threadfence_block() ((void)0)
#define __trap() abort()

// min and max of any two numbers, by CUDA's rules: a NaN loses against a number.
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return (T)a < (T)b || b != b ? (T)a : (T)b;
  else return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return (T)a > (T)b || b != b ? (T)a : (T)b;
  else return (T)a > (T)b ? (T)a : (T)b;
}
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, emu::Same<T> v) { *p = v; }
template <class T> static inline void __stcg(T* p, emu::Same<T> v) { *p = v; }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
#define __expf expf  // macros: the C library has functions of these names, not declared for us
#define __logf logf
#define __powf powf
static inline int __float_as_int(float x) { int i; memcpy(&i, &x, 4); return i; }
static inline float __int_as_float(int i) { float x; memcpy(&x, &i, 4); return x; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
