// SPDX-License-Identifier: Apache-2.0

package xds

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// plainJSON rewrites the two escapes of JSON strings that the YAML parser does
// not know, \/ and pairs of surrogates, if data is JSON. Lines stay where they
// were.
func plainJSON(data []byte) []byte {
	if start := bytes.TrimLeft(data, " \t\r\n"); len(start) == 0 || start[0] != '{' || !json.Valid(data) {
		return data
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); {
		if data[i] != '\\' { // JSON has backslashes in strings only
			out = append(out, data[i])
			i++
			continue
		}
		switch data[i+1] {
		case '/':
			out = append(out, '/')
			i += 2
		case 'u':
			r, n := readEscape(data[i:])
			if n == 6 && !utf16.IsSurrogate(r) {
				out = append(out, data[i:i+6]...)
			} else {
				out = utf8.AppendRune(out, r) // a half pair becomes U+FFFD, as in encoding/json
			}
			i += n
		default:
			out = append(out, data[i:i+2]...)
			i += 2
		}
	}
	return out
}

// readEscape reads \uXXXX, or two of them if they are a pair, and says how many
// bytes that was. The caller has made sure that the first is whole.
func readEscape(data []byte) (rune, int) {
	first := hex4(data[2:])
	if utf16.IsSurrogate(first) && len(data) >= 12 && data[6] == '\\' && data[7] == 'u' {
		if r := utf16.DecodeRune(first, hex4(data[8:])); r != utf8.RuneError {
			return r, 12
		}
	}
	return first, 6
}

func hex4(data []byte) rune {
	n, err := strconv.ParseUint(string(data[:4]), 16, 32)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}
