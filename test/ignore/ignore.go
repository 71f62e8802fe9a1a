// SPDX-License-Identifier: Apache-2.0

// Package ignore lets tests be run as if the proxy ignored one variable of its
// environment, to see that somebody notices (package variables).
package ignore

import (
	"os"
	"strings"
)

// Setting is the variable of the tests' own environment that names what is to
// be ignored: a variable, or a prefix followed by *.
const Setting = "ZTUNNEL_TESTS_IGNORE"

// Variable reports whether whoever gives the proxy its environment has to
// leave this one out.
func Variable(name string) bool {
	return Matches(os.Getenv(Setting), name)
}

// Matches reports whether a variable is the one that pattern names, or one of
// those with its prefix.
func Matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern != "" && pattern == name
}
