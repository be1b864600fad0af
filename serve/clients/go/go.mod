module livetrain

go 1.19
