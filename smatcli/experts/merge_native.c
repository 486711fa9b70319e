/* Masks, merge and E[L0] of all tasks of a meta-batch for one range of columns, forward and backward, in one pass over log_alpha.
 *
 * theta_b = theta_pre + theta_delta * sum_m alphas[b][m] z_g(b)m. The formulas are those of merge_reference (smatcli/experts/merge.py), with
 * the logistic written without logarithms: for beta = 2/3, sigmoid((logit(u) + log_alpha) / beta) = y / (1 + y), y = x sqrt(x),
 * x = u / (1 - u) exp(log_alpha). Plain C without libraries, in loops that compilers vectorise. Comparisons propagate NaN, unlike fminf.
 * The caller adds up the sums over columns, chunk by chunk, so that results do not depend on the ranges of the threads.
 */
#include <stdint.h>
#include <string.h>

#define N 512 /* columns at a time: M rows of them stay in the cache for all tasks */
#define CHUNK 32768 /* columns that share one sum in double precision, for any number of threads */
#define LIMIT 40.0f /* of |log_alpha|: beyond it, the gate is 0 or 1 in fp32, and y would overflow */

typedef struct {
    int64_t columns, start, stop; /* P, and the range of this call, which starts at a multiple of CHUNK */
    int32_t tasks, experts, gates; /* gates: 1 (one mask for all tasks), or tasks */
    int32_t noisy;
    float gamma, stretch, odds_l0; /* odds_l0 = exp(l0_shift) */
    const float *delta, *log_alpha, *alphas; /* [P], [M][P], [B][M] */
    const uint32_t *keys; /* [G][M][2] */
    const uint8_t *dense; /* [P] or null */
} Merge;

/* exp on [-LIMIT, LIMIT], to 2 units in the last place: 2^k times a polynomial of the remainder (Cody and Waite's reduction); NaN for NaN. */
static inline float exponential(float x)
{
    float n = __builtin_rintf(x * 1.44269504f), power;
    int32_t bits = ((int32_t)n + 127) << 23;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* u / (1 - u) of the counter-based uniform number u of a column, see smatcli/experts/noise.py. */
static inline float odds(uint32_t column, uint32_t k0, uint32_t k1)
{
    uint32_t x = column * k1 + k0;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    float u = ((float)(int32_t)(x >> 9) + 0.5f) * 0x1p-23f;
    return u / (1.0f - u);
}

static inline float root(float x) { return __builtin_sqrtf(x); }

static void exponentials(const Merge *q, int64_t at, int n, float *e)
{
    for (int m = 0; m < q->experts; m++) {
        const float *row = q->log_alpha + m * q->columns + at;
        float *out = e + m * N;
        for (int j = 0; j < n; j++) {
            float x = row[j];
            x = x > LIMIT ? LIMIT : x;
            x = x < -LIMIT ? -LIMIT : x;
            out[j] = exponential(x);
        }
    }
}

/* y = (odds e)^1.5 of expert m under gate g. */
static inline void powers(const Merge *q, int g, int m, int64_t at, int n, const float *restrict e, float *restrict y)
{
    if (q->noisy) {
        uint32_t k0 = q->keys[2 * (g * q->experts + m)], k1 = q->keys[2 * (g * q->experts + m) + 1];
        for (int j = 0; j < n; j++) {
            float x = e[j] * odds((uint32_t)(at + j), k0, k1);
            y[j] = x * root(x);
        }
    } else {
        for (int j = 0; j < n; j++)
            y[j] = e[j] * root(e[j]);
    }
}

static inline float clamped(float t)
{
    t = t < 0.0f ? 0.0f : t;
    return t > 1.0f ? 1.0f : t;
}

/* theta: B pointers to [P]. The sums of each chunk are added to nonzeros [chunks][G][M] and l0 [chunks][M]. scratch has space for
 * (M + B + 1) N floats. */
void smat_merge_forward(const Merge *q, const float *pre, float *const *theta, double *nonzeros, double *l0, float *scratch)
{
    int M = q->experts;
    float *e = scratch, *mask = e + (int64_t)M * N, *restrict y = mask + (int64_t)q->tasks * N;
    float gamma = q->gamma, stretch = q->stretch, odds_l0 = q->odds_l0;
    for (int64_t at = q->start; at < q->stop; at += N) {
        int n = (int)(q->stop - at < N ? q->stop - at : N);
        const uint8_t *dense = q->dense ? q->dense + at : 0;
        exponentials(q, at, n, e);
        for (int m = 0; m < M; m++) {
            float sum = 0.0f;
            for (int j = 0; j < n; j++) {
                float w = e[m * N + j] * odds_l0;
                sum += w / (1.0f + w);
            }
            l0[at / CHUNK * M + m] += sum;
        }
        memset(mask, 0, sizeof(float) * (size_t)q->tasks * N);
        for (int g = 0; g < q->gates; g++) {
            int first = q->gates == 1 ? 0 : g, last = q->gates == 1 ? q->tasks : g + 1;
            for (int m = 0; m < M; m++) {
                int32_t count = 0;
                powers(q, g, m, at, n, e + m * N, y);
                for (int j = 0; j < n; j++)
                    y[j] = clamped(y[j] / (1.0f + y[j]) * stretch + gamma);
                for (int j = 0; j < n; j++)
                    count += y[j] > 0.0f;
                if (dense)
                    for (int j = 0; j < n; j++)
                        count += dense[j] && !(y[j] > 0.0f);
                nonzeros[(at / CHUNK * q->gates + g) * M + m] += count;
                for (int b = first; b < last; b++) {
                    float score = q->alphas[b * M + m], *restrict out = mask + (int64_t)b * N;
                    for (int j = 0; j < n; j++)
                        out[j] += score * y[j];
                }
            }
        }
        for (int b = 0; b < q->tasks; b++) {
            float *restrict out = theta[b] + at, *restrict mine = mask + (int64_t)b * N;
            if (dense)
                for (int j = 0; j < n; j++)
                    mine[j] = dense[j] ? 1.0f : mine[j];
            for (int j = 0; j < n; j++)
                out[j] = pre[at + j] + q->delta[at + j] * mine[j];
        }
    }
}

/* grad: B pointers to [P] or null; share: [G][M] (gradient of the sum of E[L0] over P) or null. d_log_alpha [M][P] and d_delta [P] are
 * overwritten; the sums of each chunk are added to d_alphas [chunks][B][M]. scratch has space for (M + 2 B + 2) N floats. */
void smat_merge_backward(const Merge *q, const float *const *grad, const float *share, float *d_delta, float *d_log_alpha, double *d_alphas,
                         float *scratch)
{
    int M = q->experts, B = q->tasks;
    float *e = scratch, *mask = e + (int64_t)M * N, *through = mask + (int64_t)B * N, *restrict y = through + (int64_t)B * N;
    float *restrict pull = y + N, gamma = q->gamma, stretch = q->stretch, odds_l0 = q->odds_l0;
    float low = -gamma / stretch, high = (1.0f - gamma) / stretch, slope = stretch * 1.5f;
    for (int64_t at = q->start; at < q->stop; at += N) {
        int n = (int)(q->stop - at < N ? q->stop - at : N);
        const uint8_t *dense = q->dense ? q->dense + at : 0;
        exponentials(q, at, n, e);
        memset(mask, 0, sizeof(float) * (size_t)B * N);
        for (int b = 0; b < B; b++) {
            float *restrict out = through + (int64_t)b * N;
            if (!grad[b])
                continue;
            for (int j = 0; j < n; j++)
                out[j] = grad[b][at + j] * q->delta[at + j];
            if (dense)
                for (int j = 0; j < n; j++)
                    out[j] = dense[j] ? 0.0f : out[j];
        }
        for (int g = 0; g < q->gates; g++) {
            int first = q->gates == 1 ? 0 : g, last = q->gates == 1 ? B : g + 1, used = 0;
            for (int b = first; b < last; b++)
                used += grad[b] != 0;
            for (int m = 0; m < M; m++) {
                float *restrict out = d_log_alpha + m * q->columns + at, *restrict em = e + m * N;
                float c = share ? share[g * M + m] : 0.0f;
                for (int j = 0; j < n; j++)
                    pull[j] = 0.0f;
                if (used) {
                    powers(q, g, m, at, n, em, y);
                    for (int b = first; b < last; b++) {
                        float score = q->alphas[b * M + m], *restrict mine = mask + (int64_t)b * N, *restrict down = through + (int64_t)b * N;
                        float sum = 0.0f;
                        if (!grad[b])
                            continue;
                        for (int j = 0; j < n; j++) {
                            float z = clamped(y[j] / (1.0f + y[j]) * stretch + gamma);
                            mine[j] += score * z;
                            sum += down[j] * z;
                            pull[j] += score * down[j];
                        }
                        d_alphas[(at / CHUNK * B + b) * M + m] += sum;
                    }
                    for (int j = 0; j < n; j++) {
                        float under = 1.0f / (1.0f + y[j]), s = y[j] * under;
                        pull[j] *= s > low && s < high ? slope * (s * under) : 0.0f;
                    }
                }
                for (int j = 0; j < n; j++) {
                    float w = em[j] * odds_l0, under = 1.0f / (1.0f + w);
                    pull[j] += c * (w * under * under);
                }
                /* Separate loops for sums over tasks, here and below: the result equals that of separate calls bit for bit. */
                if (g)
                    for (int j = 0; j < n; j++)
                        out[j] += pull[j];
                else
                    memcpy(out, pull, sizeof(float) * (size_t)n);
            }
        }
        for (int j = 0; j < n; j++)
            d_delta[at + j] = 0.0f;
        for (int b = 0; b < B; b++) {
            if (!grad[b])
                continue;
            const float *restrict mine = mask + (int64_t)b * N;
            for (int j = 0; j < n; j++)
                y[j] = grad[b][at + j] * (dense && dense[j] ? 1.0f : mine[j]);
            for (int j = 0; j < n; j++)
                d_delta[at + j] += y[j];
        }
    }
}
