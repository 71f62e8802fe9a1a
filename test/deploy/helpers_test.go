// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"testing"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLines(text []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(text)) }

// withoutComments is a document without the lines that are comments.
func withoutComments(document []byte) []byte {
	var rest []byte
	for line := range bytes.Lines(document) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			rest = append(rest, line...)
		}
	}
	return rest
}

func equal(t *testing.T, a, b any) bool {
	t.Helper()
	one, err := json.Marshal(a)
	must(t, err)
	other, err := json.Marshal(b)
	must(t, err)
	return bytes.Equal(one, other)
}
