// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/ztunnel-go/ztunnel/cmd/ztunnel/app"
	"github.com/ztunnel-go/ztunnel/internal/metrics"
)

func TestThePageIsFresh(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want, err := refresh(string(text), app.MetricFamilies())
	if err != nil {
		t.Fatal(err)
	}
	if want != string(text) {
		t.Error("docs/metrics.md is not what the proxy registers: go generate ./test/metricsdoc")
	}
}

func TestAPageWithoutItsPlaceIsLeftAlone(t *testing.T) {
	for _, text := range []string{"", begin, end, "a\n" + end + "b\n" + begin} {
		if got, err := refresh(text, []metrics.Family{{Name: "x"}}); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}
