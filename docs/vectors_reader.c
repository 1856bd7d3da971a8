/* Prints name, dtype, shape and first values of each tensor in a safetensors file.
 * A file is: 8 bytes, the length N of the header, little-endian; N bytes of JSON,
 * {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ...}; then the
 * numbers, row-major, little-endian, from whose start the offsets count. The entry
 * "__metadata__" is no tensor. Source: safetensors, README, section "Format". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *p; /* where the reading of the header stands; a 0 byte ends it */
static void fail(const char *why) { fprintf(stderr, "error: %s\n", why); exit(1); }

static int next_is(char c) { /* skips white space, then takes c if it is there */
    p += strspn(p, " \n\t\r");
    return *p == c ? (p++, 1) : 0;
}
static void want(char c) { if (!next_is(c)) fail("the header is damaged"); }

static int text(const char **start) { /* a JSON text, escapes as they are; its length */
    want('"');
    for (*start = p; *p && *p != '"'; p++)
        if (*p == '\\' && p[1]) p++;
    if (p - *start > 4096) fail("a name is too long");
    int length = (int)(p - *start);
    want('"');
    return length;
}
static int is(const char *word, const char *start, int length) {
    return length == (int)strlen(word) && !memcmp(word, start, (size_t)length);
}
static int list(uint64_t *values) { /* [1, 2, 3]; how many */
    int n = 0;
    want('[');
    if (next_is(']')) return 0;
    do {
        p += strspn(p, " \n\t\r");
        size_t digits = strspn(p, "0123456789");
        if (n == 8 || !digits) fail("a list of numbers is damaged");
        values[n++] = strtoull(p, NULL, 10); /* too large a number gives the largest */
        p += digits;
    } while (next_is(','));
    want(']');
    return n;
}
static void print_value(char kind, const unsigned char *bytes, int size) {
    uint64_t n = 0;
    for (int i = size; i-- > 0;) n = n << 8 | bytes[i];
    union { uint32_t bits; float value; } single = {(uint32_t)n};
    union { uint64_t bits; double value; } full = {n};
    if (kind == 'F') printf(" %.*g", size == 4 ? 9 : 17, size == 4 ? single.value : full.value);
    else if (kind == 'I') printf(" %lld", (long long)n);
    else printf(" %llu", (unsigned long long)n);
}
int main(int count, char **arguments) {
    const char *dtypes[] = {"BOOL", "U8", "I64", "F32", "F64"};
    const int sizes[] = {1, 1, 8, 4, 8};
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    if (!file) fail(count == 2 ? "cannot open the file" : "usage: vectors_reader FILE");
    size_t length = fseek(file, 0, SEEK_END) ? 0 : (size_t)ftell(file);
    unsigned char *all = length < 8 ? NULL : malloc(length);
    rewind(file);
    if (!all || fread(all, 1, length, file) != length) fail("cannot read the file, or cut off");
    uint64_t header = 0;
    for (int i = 8; i-- > 0;) header = header << 8 | all[i];
    if (header > length - 8) fail("cut off, or not a safetensors file");
    uint64_t bytes = length - 8 - header; /* of numbers */
    const unsigned char *numbers = all + length - bytes;
    p = memmove(all + 7, all + 8, (size_t)header); /* one down: room for a 0 at the end */
    all[7 + header] = 0;
    for (want('{'); !next_is('}'); next_is(',')) {
        const char *name, *key, *dtype = "";
        uint64_t shape[8], offsets[8], items = 1;
        int named = text(&name), typed = 0, dimensions = -1, ends = 0, size = 0;
        for (want(':'), want('{'); !next_is('}'); next_is(',')) {
            int keyed = text(&key);
            want(':');
            if (is("shape", key, keyed)) dimensions = list(shape);
            else if (is("data_offsets", key, keyed)) ends = list(offsets);
            else typed = text(&dtype); /* "dtype", or a text of the metadata */
        }
        if (is("__metadata__", name, named)) continue;
        for (int i = 0; i < 5; i++) if (is(dtypes[i], dtype, typed)) size = sizes[i];
        if (!size || dimensions < 0 || ends != 2) fail("a tensor is damaged, or of another dtype");
        for (int i = 0; i < dimensions; i++) /* at most one more than there can be */
            items = shape[i] && items > bytes / shape[i] ? bytes + 1 : items * shape[i];
        uint64_t begin = offsets[0], end = offsets[1], step = (uint64_t)size;
        if (begin > end || end > bytes) fail("cut off: numbers are missing");
        if (items * step != end - begin) fail("a shape is damaged");
        printf("%.*s %.*s [", named, name, typed, dtype);
        for (int i = 0; i < dimensions; i++)
            printf(i ? ", %llu" : "%llu", (unsigned long long)shape[i]);
        printf("]");
        for (uint64_t i = begin; i < end && i < begin + 6 * step; i += step)
            print_value(*dtype, numbers + i, size);
        printf("\n");
    }
    return fclose(file); /* the system takes back the memory */
}
