/* Linked into the routers' programs in place of libunwind. The standard library asks for a stack trace only when
 * RUST_BACKTRACE is set, and could only print bare addresses there; for that it would bring an interpreter of unwinding
 * tables (40 KB on MIPS), and on ARM instructions of an FPU. A trap's address is told by src/sys/fatal.rs. */

enum { END_OF_STACK = 5 };

int _Unwind_Backtrace(void *trace, void *argument)
{
	(void)trace, (void)argument;
	return END_OF_STACK;
}

/* What a trace function would ask of a frame; never called, since there is no frame. */
unsigned long _Unwind_GetIP(void *frame) { (void)frame; return 0; }
unsigned long _Unwind_GetIPInfo(void *frame, int *before) { (void)frame, (void)before; return 0; }
unsigned long _Unwind_GetCFA(void *frame) { (void)frame; return 0; }
void *_Unwind_FindEnclosingFunction(void *address) { (void)address; return 0; }
int _Unwind_VRS_Get(void *frame, int class, unsigned int number, int kind, void *value)
{
	(void)frame, (void)class, (void)number, (void)kind, (void)value;
	return 1;
}
