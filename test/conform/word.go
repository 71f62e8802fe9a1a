// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"errors"
	"strconv"
	"strings"
)

// A word is one word of a line.
type word struct {
	text   string
	quoted bool // it was a Go string literal, and text is its value
}

// splitWords cuts a line at blanks. A word that begins with " or ` is a Go
// string literal; within other words double quotes keep blanks together and
// stay what they are, as in error="not now". A # that begins a word makes the
// rest a comment.
func splitWords(line string) ([]word, error) {
	var words []word
	for {
		line = strings.TrimLeft(line, " \t\r")
		switch {
		case line == "" || line[0] == '#':
			return words, nil
		case line[0] == '"' || line[0] == '`':
			literal, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, errors.New("a string that does not end, or with an escape that Go does not know")
			}
			text, err := strconv.Unquote(literal)
			if err != nil {
				return nil, err
			}
			words, line = append(words, word{text, true}), line[len(literal):]
			if line != "" && !strings.ContainsRune(" \t\r", rune(line[0])) {
				return nil, errors.New("a string that does not end with a blank")
			}
		default:
			n, err := bareLength(line)
			if err != nil {
				return nil, err
			}
			words, line = append(words, word{line[:n], false}), line[n:]
		}
	}
}

// bareLength is that of the word that line begins with.
func bareLength(line string) (int, error) {
	inside := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && inside:
			i++
		case c == '"':
			inside = !inside
		case !inside && (c == ' ' || c == '\t' || c == '\r'):
			return i, nil
		}
	}
	if inside {
		return 0, errors.New("a quote that is not closed")
	}
	return len(line), nil
}
