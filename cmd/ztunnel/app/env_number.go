// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// parseUnsigned reads a decimal number of so many bits, with the reasons that
// the reference gives: operators search their logs for them.
func parseUnsigned(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, bits)
	switch {
	case err == nil:
		return n, nil
	case s == "":
		return 0, errors.New("cannot parse integer from empty string")
	case errors.Is(err, strconv.ErrRange):
		return 0, errors.New("number too large to fit in target type")
	default:
		return 0, errors.New("invalid digit found in string")
	}
}

// parseDecimal reads a number as the reference's floats are written: digits,
// at most one point, an exponent; no underscores and no hexadecimal.
func parseDecimal(s string) (float64, error) {
	if s == "" {
		return 0, errors.New("cannot parse float from empty string")
	}
	f, err := strconv.ParseFloat(s, 64)
	if (err != nil && !errors.Is(err, strconv.ErrRange)) || strings.ContainsAny(s, "_xXpP") {
		return 0, errors.New("invalid float literal")
	}
	return f, nil
}

// workerThreads reads "N" or "P%": so many threads, or that part of the CPUs
// rounded up. Zero means all CPUs (contract 1.4).
func workerThreads(s string, cpus int) (int, error) {
	if percent, ok := strings.CutSuffix(s, "%"); ok {
		p, err := parseDecimal(percent)
		if err != nil {
			return 0, fmt.Errorf("invalid percentage: %w", err)
		}
		if !(p > 0 && p <= 100) { // also refuses NaN
			return 0, errors.New("percentage must be between 0 and 100")
		}
		return max(int(math.Ceil(float64(cpus)*p/100)), 1), nil
	}
	n, err := parseUnsigned(s, 31)
	if err != nil {
		return 0, fmt.Errorf("invalid number: %w", err)
	}
	if n == 0 {
		return cpus, nil
	}
	return int(n), nil
}

// wholeCPUs reads a Kubernetes CPU quantity ("2", "1.5", "500m") and rounds up
// to whole CPUs. Zero, negative and endless quantities are refused.
func wholeCPUs(s string) (int, error) {
	number, unit := s, 1.0
	if milli, ok := strings.CutSuffix(s, "m"); ok {
		number, unit = milli, 1000
	}
	f, err := parseDecimal(number)
	if err != nil {
		return 0, err
	}
	n := math.Ceil(f / unit)
	if !(n > 0 && n <= math.MaxInt32) {
		return 0, errors.New("must be a positive CPU quantity")
	}
	return int(n), nil
}

// cpus are the three answers to "how many CPUs have we": what is there, and
// what Kubernetes grants. Zero means that it was not said.
type cpus struct{ count, limit, request int }

func (r *reader) cpus() cpus {
	found := cpus{
		limit:   r.quantity("ZTUNNEL_RESOURCE_CPU_LIMIT"),
		request: r.quantity("ZTUNNEL_RESOURCE_CPU_REQUEST"),
	}
	override := int(r.unsigned("ZTUNNEL_CPU_LIMIT", 0, 31))
	switch {
	case found.limit > 0:
		found.count = found.limit
	case override > 0:
		found.count = override
	default:
		found.count = r.Env.cpus
	}
	return found
}

func (r *reader) quantity(name string) int {
	v, ok := r.get(name)
	if !ok {
		return 0
	}
	n, err := wholeCPUs(v)
	if err != nil {
		r.fail(name, v, err.Error())
	}
	return n
}

// threads decides the number of worker threads: the variable, else the mesh
// configuration's concurrency, else a share of the CPUs (contract 1.4).
func (r *reader) threads(concurrency *uint16) int {
	have := r.cpus()
	if v, ok := r.get("ZTUNNEL_WORKER_THREADS"); ok {
		n, err := workerThreads(v, have.count)
		if err != nil {
			r.fail("ZTUNNEL_WORKER_THREADS", v, err.Error())
		}
		return max(n, 1)
	}
	switch {
	case concurrency != nil && *concurrency > 0:
		return int(*concurrency)
	case concurrency != nil:
		return max(have.count, 1)
	case have.limit > 0:
		return max(have.limit, have.request, 1)
	default:
		// A quarter of the node: without a limit we share it with its pods.
		return max((have.count+3)/4, have.request, 2)
	}
}
