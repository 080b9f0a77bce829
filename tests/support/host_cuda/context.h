// A context of execution: a stack, and the place at which execution resumes.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SF_ASAN 1
#endif

namespace sf_host {

class Context {
 public:
  // Gives the context a stack; the first switch to it calls `function`, which must not return.
  void start_at(void (*function)()) {
    constexpr size_t bytes = 256 * 1024;  // untouched pages cost nothing
    own_stack_.reset(new char[bytes]);
    stack_ = own_stack_.get();
    stack_bytes_ = bytes;
    getcontext(&entry_);
    entry_.uc_stack.ss_sp = stack_;
    entry_.uc_stack.ss_size = stack_bytes_;
    makecontext(&entry_, function, 0);
  }

  // swapcontext makes a system call each time, so it only enters a context; from then on a jump buffer resumes it.
  static void switch_between(Context& from, Context& to) {
#if SF_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, to.stack_, to.stack_bytes_);
    swapcontext(&from.entry_, &to.entry_);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    from.entered_ = true;
    if (_setjmp(from.resume_)) return;
    if (to.entered_) _longjmp(to.resume_, 1);
    to.entered_ = true;
    setcontext(&to.entry_);
#endif
  }

  // A function that a switch has just entered calls this on the context that it was entered from.
  void was_left() {
#if SF_ASAN
    const void* bottom;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &stack_bytes_);
    stack_ = static_cast<char*>(const_cast<void*>(bottom));
#endif
  }

 private:
  ucontext_t entry_;
  jmp_buf resume_;
  bool entered_ = false;
  char* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  std::unique_ptr<char[]> own_stack_;
};

}  // namespace sf_host
