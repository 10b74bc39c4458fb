// nonewprivs says whose rights it has. It is set-uid root in its image.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
