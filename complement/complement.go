// Package complement holds no code of its own. It keeps Complement, and what Complement's test packages need, in this
// module's graph, so that `go test -c github.com/matrix-org/complement/tests/...` works from this directory.
package complement

import (
	_ "github.com/matrix-org/complement"
	_ "github.com/matrix-org/complement/federation"
)
