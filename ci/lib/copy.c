/* Linked into the routers' programs: Zig's run-time functions, where they are built to be small, copy octet by octet, which
 * ciphers and datagrams would feel. Here whole registers, four at a time, wherever they lie. */

typedef __SIZE_TYPE__ size;
typedef struct { size it; } __attribute__((packed, may_alias)) word;

enum { BLOCK = 4 * sizeof(word) };

/* Reads a block before it writes one, so that the two may overlap. */
static inline void block(unsigned char *to, const unsigned char *from)
{
	word *t = (word *)to;
	const word *f = (const word *)from;
	word a = f[0], b = f[1], c = f[2], d = f[3];
	t[0] = a, t[1] = b, t[2] = c, t[3] = d;
}

static void upwards(unsigned char *to, const unsigned char *from, size len)
{
	for (; len >= BLOCK; len -= BLOCK, to += BLOCK, from += BLOCK)
		block(to, from);
	while (len--)
		*to++ = *from++;
}

void *memcpy(void *to, const void *from, size len)
{
	upwards(to, from, len);
	return to;
}

void *memmove(void *to, const void *from, size len)
{
	if ((size)to - (size)from >= len) {
		upwards(to, from, len);
		return to;
	}
	unsigned char *t = (unsigned char *)to + len;
	const unsigned char *f = (const unsigned char *)from + len;
	for (; len >= BLOCK; len -= BLOCK)
		block(t -= BLOCK, f -= BLOCK);
	while (len--)
		*--t = *--f;
	return to;
}

void *memset(void *at, int octet, size len)
{
	unsigned char *t = at;
	word all = {(size)-1 / 255 * (unsigned char)octet};
	for (; len >= BLOCK; len -= BLOCK, t += BLOCK) {
		word *w = (word *)t;
		w[0] = all, w[1] = all, w[2] = all, w[3] = all;
	}
	while (len--)
		*t++ = octet;
	return at;
}
