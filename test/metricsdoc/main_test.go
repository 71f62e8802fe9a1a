// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"
)

func TestThePagesAreFresh(t *testing.T) {
	for page, table := range pages() {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		want, err := refresh(string(text), table)
		if err != nil {
			t.Fatalf("%s: %v", page, err)
		}
		if want != string(text) {
			t.Errorf("%s is not what the proxy has: go generate ./test/metricsdoc", page)
		}
	}
}

func TestAPageWithoutItsPlaceIsLeftAlone(t *testing.T) {
	for _, text := range []string{"", begin, end, "a\n" + end + "b\n" + begin} {
		if got, err := refresh(text, "x"); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}
