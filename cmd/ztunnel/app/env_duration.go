// SPDX-License-Identifier: Apache-2.0

package app

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// parseDuration reads the reference's grammar (contract 1.2):
//
//	duration = term { [ "+" | "*" ] term }
//	term     = digits [ unit ]
//
// with blanks anywhere between. A term without a unit is in seconds. Terms
// that stand side by side are added; + and * do not mix. A product is one of
// seconds: 1m*2m is 7200 s, 1m*10ms is 600 ms.
func parseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, errors.New("Empty input") //nolint:staticcheck // the reference's text
	}
	rest := strings.TrimLeftFunc(s, unicode.IsSpace)
	total, rest, err := durationTerm(rest)
	if err != nil {
		return 0, err
	}
	var used byte // the operator of this expression, once there is one
	for rest != "" {
		op := byte('+')
		if rest[0] == '+' || rest[0] == '*' {
			op, rest = rest[0], strings.TrimLeftFunc(rest[1:], unicode.IsSpace)
		}
		if used != 0 && op != used {
			return 0, errors.New("not support '+' with '*' calculate")
		}
		used = op
		var term uint64
		if term, rest, err = durationTerm(rest); err != nil {
			return 0, err
		}
		if total, err = combine(total, term, op); err != nil {
			return 0, err
		}
	}
	if total > math.MaxInt64 { // 292 years
		return 0, errOverflow
	}
	return time.Duration(total), nil
}

var errOverflow = errors.New("overflow error")

// combine adds two amounts of nanoseconds, or multiplies them as seconds.
func combine(a, b uint64, op byte) (uint64, error) {
	if op == '+' {
		sum, carry := bits.Add64(a, b, 0)
		if carry != 0 {
			return 0, errOverflow
		}
		return sum, nil
	}
	hi, lo := bits.Mul64(a, b)
	if hi >= uint64(time.Second) { // the quotient would not fit
		return 0, errOverflow
	}
	product, _ := bits.Div64(hi, lo, uint64(time.Second))
	return product, nil
}

// durationTerm reads one term and the blanks after it, in nanoseconds.
func durationTerm(s string) (uint64, string, error) {
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	if end == 0 {
		return 0, "", fmt.Errorf("expected digits or one of '+', '*' at %q", s)
	}
	n, err := parseUnsigned(s[:end], 64)
	if err != nil {
		return 0, "", errOverflow
	}
	s = strings.TrimLeftFunc(s[end:], unicode.IsSpace)
	word := s[:unitLength(s)]
	unit, ok := durationUnit(word)
	if !ok {
		return 0, "", fmt.Errorf("unknown unit %q, expected one of y, mon, w, d, h, m, s, ms, µs, us, ns", word)
	}
	hi, lo := bits.Mul64(n, uint64(unit))
	if hi != 0 {
		return 0, "", errOverflow
	}
	return lo, strings.TrimLeftFunc(s[len(word):], unicode.IsSpace), nil
}

// unitLength is the length in bytes of the letters that s begins with.
func unitLength(s string) int {
	n := 0
	for n < len(s) {
		r, size := utf8.DecodeRuneInString(s[n:])
		if !unicode.IsLetter(r) {
			break
		}
		n += size
	}
	return n
}

// durationUnit knows the units by their short and long names, whatever their
// case. A year has 365 days and a month 30, as in the reference.
func durationUnit(name string) (time.Duration, bool) {
	const day = 24 * time.Hour
	switch strings.ToLower(name) {
	case "y", "year":
		return 365 * day, true
	case "mon", "month":
		return 30 * day, true
	case "w", "week":
		return 7 * day, true
	case "d", "day":
		return day, true
	case "h", "hr", "hour":
		return time.Hour, true
	case "m", "min", "minute":
		return time.Minute, true
	case "", "s", "sec", "second":
		return time.Second, true
	case "ms", "msec", "millisecond":
		return time.Millisecond, true
	case "us", "usec", "microsecond",
		"\u00b5s", "\u00b5sec", "\u00b5second", // the micro sign
		"\u03bcs", "\u03bcsec", "\u03bcsecond": // the Greek letter, which ToLower may yield
		return time.Microsecond, true
	case "ns", "nsec", "nanosecond":
		return time.Nanosecond, true
	default:
		return 0, false
	}
}
